"""Data sets of images and tags under one interface; `build_dataset` makes them by name."""
import sys
from pathlib import Path

from ..distributed import barrier, rank
from ..errors import InputError
from ..toy.world import RECIPE, draw_world
from .base import Batch, Sample, TagDataset, collate, contradiction_note
from .coco import CROWDS, CocoDataset
from .folder import FolderDataset, unused_note
from .image_files import MOST_PIXELS
from .voc import ToyDataset, VocDataset

DATASETS = {"voc12": VocDataset, "coco14": CocoDataset, "folder": FolderDataset, "toy": ToyDataset}
__all__ = ["CROWDS", "DATASETS", "MOST_PIXELS", "Batch", "Sample", "TagDataset", "build_dataset", "collate"]


def build_dataset(name: str, root: Path | str, split: str, skip_bad: bool = False,
                  crowds: str = "background", max_pixels: int = MOST_PIXELS) -> TagDataset:
    """The data set `name` (one of DATASETS) below the folder `root`; its samples are whole images.

    The headers of all files are read, and InputError names the first problem. With `skip_bad` all files are
    decoded, bad images are left out, printed to stderr, one line each, and kept in `.skipped`.
    crowds: what COCO's crowd regions become in masks (one of CROWDS); only coco14 has such regions.
    max_pixels: images and masks with more pixels are bad.
    toy: the toy world of seed 0 is drawn in `root` first, if that folder is missing or empty.
    """
    if name not in DATASETS:
        raise InputError(f"--dataset {name}: valid are {', '.join(DATASETS)}")
    if name == "toy":
        if rank() == 0 and not (Path(root) / RECIPE).is_file():
            draw_world(root)
        barrier()
    if name == "coco14":
        dataset = CocoDataset(root, split, skip_bad, max_pixels, crowds)
    elif crowds != "background":
        raise InputError(f"--crowds {crowds}: {name} has no crowds, only coco14 has")
    else:
        dataset = DATASETS[name](root, split, skip_bad, max_pixels)
    if name == "folder":
        dataset.notes += unused_note(dataset)
    if name != "coco14":  # whose tags are those of the regions that its masks are drawn from
        dataset.notes += contradiction_note(dataset, root)
    for note in dataset.notes:
        print(note, file=sys.stderr)
    for problem in dataset.skipped:
        print(f"skipped: {problem}", file=sys.stderr)
    return dataset
