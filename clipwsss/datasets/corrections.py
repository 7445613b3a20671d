"""Corrections: label maps that a person has mended, which win over made ones."""
import sys
from pathlib import Path

from ..distributed import barrier, rank
from ..errors import InputError
from ..files import nfc, read_json, write_json
from ..pictures import write_mask
from .base import TagDataset, files_of
from .label_maps import read_mask


def find_corrections(folder: Path | None, dataset: TagDataset) -> dict[str, Path]:
    """Image -> its corrected label map FOLDER/NAME.png, all of them read and checked; {} without a folder.

    A line says how many are used, and which files belong to no image. InputError: a missing folder, a folder
    without label maps, or a file that is no label map of its image and classes.
    """
    if folder is None:
        return {}
    sizes = dict(zip(dataset.names, dataset.sizes))
    files = {nfc(path.stem): path for path in files_of(folder)}
    if not files:
        raise InputError(f"--corrections {folder}: no label maps (.png) in this folder")
    used = {name: path for name, path in files.items() if name in sizes}
    for name, path in used.items():
        labels = read_mask(path, dataset.max_pixels, len(dataset.classes), dataset.palette)
        if labels.shape != sizes[name]:
            height, width = sizes[name]
            found = f"{labels.shape[0]} x {labels.shape[1]}"
            raise InputError(f"{path}: {found}, its image is {height} x {width} (H x W)")
    others = sorted(files.keys() - used.keys())
    if others:
        print(f"note: {files[others[0]]}: belongs to no image of this split and is not used ({len(others)} "
              "such corrections)", file=sys.stderr)
    print(f"--corrections {folder}: {len(used)} label maps win over the made ones")
    return used


def place_corrections(corrections: dict[str, Path], dataset: TagDataset, out: Path) -> None:
    """Write the corrections of `find_corrections` to OUT/masks, so that they stand for the masks to be made.

    OUT/corrected.json keeps their names: masks that were corrected in an earlier call and no longer are get
    deleted and are made again. The main process writes; the others wait for it.
    """
    stored = out / "corrected.json"
    if rank() == 0 and (corrections or stored.exists()):
        before = set(read_json(stored)) if stored.exists() else set()
        write_json(sorted(before | corrections.keys()), stored)
        for name in before - corrections.keys():
            (out / "masks" / f"{name}.png").unlink(missing_ok=True)
        for name, path in corrections.items():
            labels = read_mask(path, dataset.max_pixels, len(dataset.classes), dataset.palette)
            write_mask(out / "masks" / f"{name}.png", labels, dataset.palette)
        write_json(sorted(corrections), stored)
    barrier()
