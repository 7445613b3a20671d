"""Corrections: label maps that a person has mended, which win over made ones."""
import sys
from pathlib import Path

import numpy as np

from ..distributed import barrier, rank
from ..errors import InputError
from ..files import read_json, write_json
from ..pictures import write_mask
from .base import TagDataset, contradiction_note
from .folder_files import visible_files
from .image_files import label_maps_of, permuted_number, read_mask


def find_corrections(folder: Path | None, dataset: TagDataset) -> dict[str, Path]:
    """Image -> its corrected label map FOLDER/NAME.png, all of them read and checked; {} without a folder.

    Lines say how many are used, which files are not and why, and which contradict the tags. InputError: a
    missing folder, a folder without a label map of these images, a file that is no label map of its image and
    classes, or one whose palette gives numbers the colours of other classes.
    """
    if folder is None:
        return {}
    sizes = dict(zip(dataset.names, dataset.sizes))
    files = label_maps_of(folder)
    used = {name: path for name, path in files.items() if name in sizes}
    others = [path for path in visible_files(folder) if path not in used.values()]
    if not used:
        found = f"; it has {others[0].relative_to(folder)}" if others else ""
        raise InputError(f"--corrections {folder}: no label map NAME.png of an image of this split in this "
                         f"folder{found}")
    for name, path in used.items():
        labels = read_mask(path, dataset.max_pixels, len(dataset.classes), dataset.palette)
        if labels.shape != sizes[name]:
            height, width = sizes[name]
            found = f"{labels.shape[0]} x {labels.shape[1]}"
            raise InputError(f"{path}: {found}, its image is {height} x {width} (H x W)")
        number = permuted_number(path, dataset.palette, len(dataset.classes), np.unique(labels))
        if number is not None:
            raise InputError(f"{path}: its palette gives number {number} the colour of another class, as "
                             "image editors write it; save it with the palette of the made masks, or as RGB")
    if others:
        print(f"note: {others[0]}: is no label map NAME.png of an image of this split and is not used "
              f"({len(others)} such files)", file=sys.stderr)
    print(f"--corrections {folder}: {len(used)} label maps win over the made ones")
    for note in contradiction_note(dataset.with_masks(folder, skip_bad=True), f"--corrections {folder}"):
        print(note, file=sys.stderr)
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
