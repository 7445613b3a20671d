"""The archive that the VOC evaluation server takes, checked before it is packed."""
import tarfile
from pathlib import Path

from ..datasets import TagDataset
from ..datasets.base import read_mask
from ..errors import InputError
from ..files import atomic_path

FOLDER = "results/VOC2012/Segmentation/comp5_test_cls"  # as VOC 2012's development kit names it


def pack(dataset: TagDataset, folder: Path, archive: Path) -> None:
    """Pack a split's predictions as FOLDER in a .tgz.

    InputError names the first image without a label map of its size with values 0..K.
    """
    if not archive.name.endswith((".tgz", ".tar.gz")):
        raise InputError(f"--submit {archive}: the server takes .tgz or .tar.gz")
    for index, name in enumerate(dataset.names):
        path, size = folder / f"{name}.png", dataset.image_size(index)
        if not path.is_file():
            raise InputError(f"{path}: missing; the server wants every image of the split")
        labels = read_mask(path)
        if labels.shape != size:
            raise InputError(f"{path}: {labels.shape[0]} x {labels.shape[1]}, its image is "
                             f"{size[0]} x {size[1]} (H x W)")
        if labels.max() > len(dataset.classes):
            raise InputError(f"{path}: value {labels.max()}; valid are 0..{len(dataset.classes)}")
    with atomic_path(archive) as temporary, tarfile.open(temporary, "w:gz") as packed:
        for name in dataset.names:
            packed.add(folder / f"{name}.png", f"{FOLDER}/{name}.png")
