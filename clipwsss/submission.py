"""The archive that the VOC evaluation server takes, checked before it is packed."""
import shutil
import tarfile
from pathlib import Path

from .datasets import TagDataset
from .datasets.base import read_mask
from .engine import atomic_path
from .errors import InputError

FOLDER = "results/VOC2012/Segmentation/comp5_test_cls"  # as VOC 2012's development kit names it


def check(dataset: TagDataset, folder: Path) -> None:
    """Every image of the split needs a label map of its size with values 0..K; InputError names the first."""
    for index, name in enumerate(dataset.names):
        path = folder / f"{name}.png"
        if not path.is_file():
            raise InputError(f"{path}: missing; the server wants every image of the split")
        labels = read_mask(path)
        if labels.shape != dataset.image_size(index):
            raise InputError(f"{path}: {labels.shape[0]} x {labels.shape[1]}, its image is "
                             f"{' x '.join(map(str, dataset.image_size(index)))} (H x W)")
        if labels.max() > len(dataset.classes):
            raise InputError(f"{path}: value {labels.max()}; valid are 0..{len(dataset.classes)}")


def pack(dataset: TagDataset, folder: Path, archive: Path) -> Path:
    """Check a split's predictions, copy them to FOLDER beside `archive` and pack that as .tgz; the folder."""
    if archive.suffixes[-1:] != [".tgz"] and archive.suffixes[-2:] != [".tar", ".gz"]:
        raise InputError(f"--submit {archive}: the server takes .tgz or .tar.gz")
    check(dataset, folder)
    target = archive.parent / FOLDER
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    with atomic_path(archive) as temporary, tarfile.open(temporary, "w:gz") as packed:
        for name in dataset.names:
            copy = shutil.copy(folder / f"{name}.png", target)
            packed.add(copy, f"{FOLDER}/{name}.png")
    print(f"{len(dataset)} checked label maps in {archive} and {target}")
    return target
