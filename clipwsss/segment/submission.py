"""Checked predictions as the VOC evaluation server takes them, or as COCO's results."""
import tarfile
from pathlib import Path

import numpy as np

from ..datasets import TagDataset
from ..datasets.base import read_mask
from ..datasets.coco_masks import encode
from ..errors import InputError
from ..files import atomic_path, write_json

FOLDER = "results/VOC2012/Segmentation/comp5_test_cls"  # as VOC 2012's development kit names it


def pack(dataset: TagDataset, folder: Path, target: Path) -> None:
    """Pack a split's predictions as FOLDER in a .tgz, or as COCO's results in a .json.

    COCO's have one region of each class in an image, with COCO's numbers of both, or the image's name and
    1..K in other data. InputError names the first image without a label map of its size with values 0..K.
    """
    for index, name in enumerate(dataset.names):
        path, size = folder / f"{name}.png", dataset.image_size(index)
        if not path.is_file():
            raise InputError(f"{path}: missing; every image of the split is wanted")
        labels = read_mask(path)
        if labels.shape != size:
            raise InputError(f"{path}: {labels.shape[0]} x {labels.shape[1]}, its image is "
                             f"{size[0]} x {size[1]} (H x W)")
        if labels.max() > len(dataset.classes):
            raise InputError(f"{path}: value {labels.max()}; valid are 0..{len(dataset.classes)}")
    if target.suffix == ".json":
        numbers = dataset.category_ids or range(1, 1 + len(dataset.classes))
        maps = ((dataset.image_ids.get(name, name), read_mask(folder / f"{name}.png"))
                for name in dataset.names)
        write_json([{"image_id": image, "category_id": numbers[label - 1], "score": 1.0,
                     "segmentation": encode(labels == label)}
                    for image, labels in maps for label in np.unique(labels[labels > 0]).tolist()], target)
        return
    with atomic_path(target) as temporary, tarfile.open(temporary, "w:gz") as packed:
        for name in dataset.names:
            packed.add(folder / f"{name}.png", f"{FOLDER}/{name}.png")
