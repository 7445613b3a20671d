"""Scores of whole folders of CAM files or label maps against a data set's masks, in several processes."""
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.utils.data
from numpy.typing import NDArray

from .cam_files import list_cams, read_cam, resize_cam
from .datasets import TagDataset
from .datasets.base import files_of, read_mask
from .engine import Progress
from .errors import InputError
from .metrics import boundary_confusion, confusion, mean_present, scores, threshold_confusions

THRESHOLDS = tuple(np.round(np.arange(0.05, 1.0, 0.05), 2).tolist())
CHUNK = 16


class Scored(NamedTuple):
    """Counts over a folder's images.

    table: confusions [T,n,n] at T thresholds, or [n,n] of label maps; boundary: [n+1,n+1] or None;
    images: number scored; rows: (name, mIoU, pixel accuracy) of each image, of label maps only;
    problems: one line per bad file.
    """
    table: NDArray
    boundary: NDArray | None
    images: int
    rows: list[tuple[str, float, float]]
    problems: list[str]


class Folder(NamedTuple):
    """A folder to score: CAM files (`cams`) or label map PNGs; threshold: the CAMs' background score."""
    path: Path
    cams: bool
    threshold: float | None = None

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
        found = set(list_cams(self.path) if self.cams else files_of(self.path, (".png",)))
        if not found:
            raise InputError(f"{self.path}: no label maps (.png) in this folder")
        return found


class _Chunks(torch.utils.data.Dataset):
    """Item i is the `Scored` of the i-th chunk of images, so that a DataLoader's workers do the scoring."""

    def __init__(self, dataset: TagDataset, folder: Folder, indices: Sequence[int],
                 thresholds: Sequence[float] | None, boundary: bool):
        self.dataset, self.folder, self.thresholds, self.boundary = dataset, folder, thresholds, boundary
        self.parts = [indices[start:start + CHUNK] for start in range(0, len(indices), CHUNK)]
        self.n = len(dataset.classes) + 1

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, part: int) -> Scored:
        shape = (self.n, self.n) if self.thresholds is None else (len(self.thresholds), self.n, self.n)
        table, boundary = np.zeros(shape, np.int64), np.zeros((self.n + 1, self.n + 1), np.int64)
        names, tables, problems = [], [], []
        for index in self.parts[part]:
            name = self.dataset.names[index]
            try:
                truth = self.dataset.load_mask(index)
                if truth is None:
                    continue
                counts, edges = self._score(name, truth)
            except InputError as error:
                problems.append(str(error))
                continue
            except ValueError as error:
                problems.append(f"{self.folder.path / name}: {error}")
                continue
            names.append(name)
            table += counts
            if self.thresholds is None:
                tables.append(counts)
            if self.boundary:
                boundary += edges
        found = scores(np.stack(tables)) if tables else {"miou": np.empty(0), "accuracy": np.empty(0)}
        rows = list(zip(names, found["miou"].tolist(), found["accuracy"].tolist()))
        return Scored(table, boundary if self.boundary else None, len(names), rows, problems)

    def _score(self, name: str, truth: NDArray) -> tuple[NDArray, NDArray | None]:
        if self.thresholds is not None:
            cam = read_cam(self.folder.path, name)
            maps = resize_cam(cam, truth.shape)
            return threshold_confusions(maps, cam.keys, truth, self.thresholds, self.n), None
        labels = self.folder.labels(name, truth.shape)
        edges = boundary_confusion(labels, truth, self.n) if self.boundary else None
        return confusion(labels, truth, self.n), edges


def _same(item: Scored) -> Scored:
    return item


def score_folder(dataset: TagDataset, folder: Folder, thresholds: Sequence[float] | None = None,
                 boundary: bool = False, workers: int = 0, skip_bad: bool = False) -> Scored:
    """Compare a folder with every image of the data set that has a mask.

    With `thresholds` the CAMs' confusion at each of them (one pass), else that of the folder's label maps.
    InputError names the first missing or bad file and counts the others; with `skip_bad` they are left out
    and listed in `problems`.
    """
    present = folder.names()
    problems = [f"{folder.path}: no file for image {name}" for index, name in enumerate(dataset.names)
                if name not in present and dataset.load_mask(index) is not None]
    indices = [index for index, name in enumerate(dataset.names) if name in present]
    chunks = _Chunks(dataset, folder, indices, thresholds, boundary)
    table, edges, images, rows = 0, None, 0, []
    progress = Progress(f"scoring {folder.path}", len(indices))
    for part in torch.utils.data.DataLoader(chunks, batch_size=None, num_workers=workers, collate_fn=_same):
        table, images = table + part.table, images + part.images
        if boundary:
            edges = part.boundary if edges is None else edges + part.boundary
        rows += part.rows
        problems += part.problems
        progress.update(part.images + len(part.problems))
    progress.close()
    if problems and (not skip_bad or not images):
        more = f"and {len(problems) - 1} more of {len(dataset)} images; " if len(problems) > 1 else ""
        raise InputError(f"{problems[0]} ({more}--skip-bad goes on without)")
    if not images:
        raise InputError(f"{folder.path}: none of this split's images has a mask to compare with")
    return Scored(table, edges, images, rows, problems)


def curve(tables: NDArray, thresholds: Sequence[float | None], names: Sequence[str]) -> dict:
    """Summed confusions [T,n,n] as {"curve": [{"threshold", "miou", "iou": {class: value}}...], "best": row}.

    In percent over the classes (`names`, background first) that occur in truth or prediction.
    """
    rows = []
    for threshold, table in zip(thresholds, tables):
        found = scores(table)
        rows.append({"threshold": threshold, "miou": round(float(found["miou"]), 4),
                     "iou": by_class(found["iou"], names)})
    return {"curve": rows, "best": max(rows, key=lambda row: row["miou"])}


def by_class(values: NDArray, names: Sequence[str]) -> dict[str, float]:
    """Values [n] by class name, absent classes (NaN) left out."""
    return {name: round(float(value), 4) for name, value in zip(names, values) if np.isfinite(value)}


def boundary_scores(table: NDArray) -> tuple[float, NDArray]:
    """(mean boundary IoU, boundary IoU [n]) in percent of a boundary confusion [n+1,n+1]."""
    found = scores(table)["iou"][:-1]
    return float(mean_present(found)), found


def print_cam_curve(dataset: TagDataset, folder: Path, thresholds: Sequence[float] = THRESHOLDS,
                    workers: int = 0) -> dict | None:
    """Print the CAMs' mIoU over background thresholds; the best threshold and mIoU, None without masks."""
    if not dataset.has_masks:
        print("no masks: no mIoU")
        return None
    scored = score_folder(dataset, Folder(Path(folder), True), thresholds, workers=workers)
    found = curve(scored.table, thresholds, ["background", *dataset.classes])
    print_curve(found)
    best = found["best"]
    print(f"best CAM mIoU {best['miou']:.2f} at threshold {best['threshold']:.2f} ({scored.images} images)")
    return {"threshold": best["threshold"], "miou": best["miou"]}


def print_curve(found: dict) -> None:
    """Print `curve`'s mIoU under its thresholds, ten to a line."""
    for start in range(0, len(found["curve"]), 10):
        rows = found["curve"][start:start + 10]
        print("threshold " + " ".join(f"{row['threshold']:6.2f}" for row in rows))
        print("mIoU      " + " ".join(f"{row['miou']:6.2f}" for row in rows))


def print_label_miou(dataset: TagDataset, folder: Path, what: str, workers: int = 0) -> float | None:
    """Print the mIoU of a folder of label maps on the images with masks and return it; None without masks."""
    if not dataset.has_masks:
        print(f"no masks: no mIoU of the {what}")
        return None
    scored = score_folder(dataset, Folder(Path(folder), False), workers=workers)
    found = scores(scored.table)
    print(f"{what} mIoU {found['miou']:.2f} ({scored.images} images, {found['classes']} classes occur)")
    return float(found["miou"])
