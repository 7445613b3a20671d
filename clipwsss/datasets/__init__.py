"""Data sets of images and tags under one interface; `build_dataset` makes them by name."""
import sys
from pathlib import Path

from ..errors import InputError
from .base import Batch, Sample, TagDataset, collate
from .coco import CocoDataset
from .folder import FolderDataset
from .reading import Checked
from .toy import ToyDataset
from .voc import VocDataset

DATASETS = {"voc12": VocDataset, "coco14": CocoDataset, "folder": FolderDataset, "toy": ToyDataset}
CROWDS = {"background": 0, "ignore": 255}  # what COCO's crowds are in its masks
__all__ = ["CROWDS", "DATASETS", "Batch", "Sample", "TagDataset", "build_dataset", "collate"]


def build_dataset(name: str, root: Path | str, split: str, skip_bad: bool = False,
                  crowds: str = "background", checked: Checked | None = None) -> TagDataset:
    """The data set `name` (one of DATASETS) below `root`, every file of `split` checked.

    Samples are whole images until `with_transform`. `crowds`: one of CROWDS, of coco14 alone. InputError
    names the first problem of the data; with `skip_bad` bad images are left out, printed to stderr, one line
    each, and kept in `.skipped`. `checked` may know good files from before.
    """
    if name not in DATASETS:
        raise InputError(f"--dataset {name}: valid are {', '.join(DATASETS)}")
    dataset = DATASETS[name](root, split, skip_bad, checked)
    if isinstance(dataset, CocoDataset):
        dataset.crowd_label = CROWDS[crowds]
    elif crowds != "background":
        raise InputError(f"--crowds {crowds}: {name} has no crowds, only coco14 has")
    for line in (*dataset.notes, *(f"skipped: {problem}" for problem in dataset.skipped)):
        print(line, file=sys.stderr)
    return dataset
