"""Scores of whole folders of CAM files or label maps against a data set's masks, in several processes."""
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ..cams.files import list_cams, read_cam, resize_cam
from ..datasets import TagDataset
from ..datasets.base import files_of, read_mask
from ..progress import Progress
from ..errors import InputError
from .metrics import boundary_confusion, confusion, scores, threshold_confusions

THRESHOLDS = tuple(np.round(np.arange(0.05, 1.0, 0.05), 2).tolist())
CHUNK = 16


class Scored(NamedTuple):
    """Counts over a folder's images.

    table: confusions [T,n,n] at T thresholds, or [n,n] of label maps; boundary: [n+1,n+1], 0 if not asked
    for; images: number scored; rows: (name, mIoU, pixel accuracy) of label maps; problems: a line per file.
    """
    table: NDArray
    boundary: NDArray
    images: int
    rows: list[tuple[str, float, float]]
    problems: list[str]


class Folder(NamedTuple):
    """A folder to score: CAM files (`cams`) or label map PNGs; threshold: the CAMs' background score."""
    path: Path
    cams: bool
    threshold: float = 0.25  # make_pseudo's

    def labels(self, name: str, size: tuple[int, int]) -> NDArray:
        """Label map uint8 [H,W] of one image; InputError names a missing or bad file."""
        if not self.cams:
            return read_mask(self.path / f"{name}.png")
        cam = read_cam(self.path, name)
        maps = resize_cam(cam, size)
        found = maps.max(0) > np.float32(self.threshold)
        return np.where(found, cam.keys[maps.argmax(0)] + 1, 0).astype(np.uint8)

    def names(self) -> set[str]:
        """Images that have a file here; InputError without any."""
        found = set(list_cams(self.path)) if self.cams else {path.stem for path in files_of(self.path)}
        if not found:
            raise InputError(f"{self.path}: no label maps (.png) in this folder")
        return found


class _Chunks(Dataset):
    """Item i is the `Scored` of the i-th chunk of images, so that a DataLoader's workers do the scoring."""

    def __init__(self, dataset: TagDataset, folder: Folder, indices: Sequence[int],
                 thresholds: Sequence[float] | None, boundary: bool):
        self.dataset, self.folder, self.thresholds, self.boundary = dataset, folder, thresholds, boundary
        self.parts = [indices[start:start + CHUNK] for start in range(0, len(indices), CHUNK)]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, part: int) -> Scored:
        names, tables, boundary, problems = [], [], 0, []
        for index in self.parts[part]:
            name = self.dataset.names[index]
            try:
                truth = self.dataset.load_mask(index)
                if truth is None:
                    continue
                table, edges = self._score(name, truth)
            except ValueError as error:
                where = "" if isinstance(error, InputError) else f"{self.folder.path / name}: "
                problems.append(f"{where}{error}")
                continue
            names.append(name)
            tables.append(table)
            boundary = boundary + edges
        rows = []
        if tables and self.thresholds is None:
            found = scores(np.stack(tables))
            rows = list(zip(names, found["miou"].tolist(), found["accuracy"].tolist()))
        return Scored(sum(tables), boundary, len(names), rows, problems)

    def _score(self, name: str, truth: NDArray) -> tuple[NDArray, NDArray | int]:
        n = len(self.dataset.classes) + 1
        if self.thresholds is not None:
            cam = read_cam(self.folder.path, name)
            return threshold_confusions(resize_cam(cam, truth.shape), cam.keys, truth, self.thresholds, n), 0
        labels = self.folder.labels(name, truth.shape)
        return confusion(labels, truth, n), boundary_confusion(labels, truth, n) if self.boundary else 0


def score_folder(dataset: TagDataset, folder: Folder, thresholds: Sequence[float] | None = None,
                 boundary: bool = False, workers: int = 0, skip_bad: bool = False) -> Scored:
    """Compare a folder with every image of the data set that has a mask.

    With `thresholds` the CAMs' confusion at each of them (one pass), else that of the folder's label maps.
    `workers` processes help this one. InputError names the first bad file and counts the others; with
    `skip_bad` they are listed in `problems`.
    """
    present = folder.names()
    problems = [f"{folder.path}: no file for image {name}" for index, name in enumerate(dataset.names)
                if name not in present and dataset.has_mask(index)]
    indices = [index for index, name in enumerate(dataset.names) if name in present]
    chunks = _Chunks(dataset, folder, indices, thresholds, boundary)
    progress, workers = Progress(f"scoring {folder.path}", len(indices)), min(workers, max(0, len(chunks) - 1))
    own = range(0, len(chunks), workers + 1)  # this process scores its share while the others do theirs
    theirs = [index for index in range(len(chunks)) if index not in own]
    arriving = iter(DataLoader(chunks, batch_size=None, sampler=theirs, num_workers=workers,
                               prefetch_factor=len(theirs) or None, collate_fn=Scored._make))
    parts = {}
    for index in (*own, *theirs):
        parts[index] = part = chunks[index] if index in own else next(arriving)
        progress.update(part.images + len(part.problems))
    progress.close()
    total = Scored(0, 0, 0, [], problems)
    for index in sorted(parts):
        total = Scored(*(before + new for before, new in zip(total, parts[index])))
    problems = total.problems
    if problems and (not skip_bad or not total.images):
        more = f"and {len(problems) - 1} more of {len(dataset)} images; " if len(problems) > 1 else ""
        raise InputError(f"{problems[0]} ({more}--skip-bad goes on without)")
    if not total.images:
        raise InputError(f"{folder.path}: none of this split's images has a mask to compare with")
    return total


def curve(tables: NDArray, thresholds: Sequence[float | None], names: Sequence[str]) -> dict:
    """Summed confusions [T,n,n] as {"curve": [{"threshold", "miou", "iou": {class: value}}...], "best": row}.

    In percent over the classes (`names`, background first) that occur in truth or prediction.
    """
    found = scores(tables)
    rows = [{"threshold": threshold, "miou": round(float(miou), 4), "iou": by_class(iou, names)}
            for threshold, miou, iou in zip(thresholds, found["miou"], found["iou"])]
    return {"curve": rows, "best": max(rows, key=lambda row: row["miou"])}


def by_class(values: NDArray, names: Sequence[str]) -> dict[str, float]:
    """Values [n] by class name, absent classes (NaN) left out."""
    return {name: round(float(value), 4) for name, value in zip(names, values) if np.isfinite(value)}


def print_curve(found: dict) -> None:
    """Print `curve`'s mIoU under its thresholds, ten to a line."""
    for start in range(0, len(found["curve"]), 10):
        rows = found["curve"][start:start + 10]
        print("threshold " + " ".join(f"{row['threshold']:6.2f}" for row in rows))
        print("mIoU      " + " ".join(f"{row['miou']:6.2f}" for row in rows))


def print_cam_curve(dataset: TagDataset, cams: Path) -> dict[str, float]:
    """Print a folder's CAM mIoU over thresholds; {threshold, miou} of the best, {} without masks."""
    if not dataset.has_masks:
        print("no masks: no mIoU")
        return {}
    scored = score_folder(dataset, Folder(cams, True), THRESHOLDS)
    found = curve(scored.table, THRESHOLDS, ["background", *dataset.classes])
    print_curve(found)
    best = found["best"]
    print(f"best CAM mIoU {best['miou']:.2f} at threshold {best['threshold']:.2f} ({scored.images} images)")
    return {"threshold": best["threshold"], "miou": best["miou"]}


def print_label_miou(dataset: TagDataset, folder: Path, what: str, workers: int = 0) -> dict[str, float]:
    """Print the mIoU of a folder of label maps on the images with masks; {miou}, {} without masks."""
    if not dataset.has_masks:
        print(f"no masks: no mIoU of the {what}")
        return {}
    scored = score_folder(dataset, Folder(folder, False), workers=workers)
    found = scores(scored.table)
    print(f"{what} mIoU {found['miou']:.2f} ({scored.images} images, {found['classes']} classes occur)")
    return {"miou": float(found["miou"])}
