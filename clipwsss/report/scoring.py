"""Scores of whole folders of CAM files or label maps against a data set's masks, in several processes."""
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..cams.cam_files import list_cams, read_cam, resize_cam
from ..datasets import TagDataset
from ..datasets.base import files_of, read_mask
from ..datasets.jobs import ImageJobs
from ..errors import InputError, input_errors
from .metrics import boundary_confusion, confusion, scores, threshold_confusions

THRESHOLDS = tuple(np.round(np.arange(0.05, 1.0, 0.05), 2).tolist())


class LabelFolder(NamedTuple):
    """A folder of label maps, NAME.png: pseudo masks or predictions; there is nothing to threshold."""
    path: Path
    threshold: None = None

    def names(self) -> set[str]:
        """Images that have a file here; InputError without any."""
        names = {path.stem for path in files_of(self.path)}
        if not names:
            raise InputError(f"{self.path}: no label maps (.png) in this folder")
        return names

    def labels(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """Label map uint8 [H,W] of an image, at the size it has; InputError names a missing or bad file."""
        return read_mask(self.path / f"{name}.png")


class CamFolder(NamedTuple):
    """A folder of CAM files; a pixel is of the class of its largest map where that exceeds `threshold`."""
    path: Path
    threshold: float = 0.25  # make_pseudo's

    def names(self) -> set[str]:
        """Images that have a file here; InputError without any."""
        return set(list_cams(self.path))

    def maps(self, name: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Maps float32 [k,H,W] of an image of this size and their 0-based classes [k]."""
        file = read_cam(self.path, name)
        return resize_cam(file, size), file.keys

    def labels(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """Label map uint8 [H,W] of an image of this size; InputError names a missing or bad file."""
        maps, keys = self.maps(name, size)
        exceeds = maps.max(0) > np.float32(self.threshold)
        return np.where(exceeds, keys[maps.argmax(0)] + 1, 0).astype(np.uint8)


Folder = LabelFolder | CamFolder


class Tally(NamedTuple):
    """Counts of one image or, added up, of many.

    confusion: [n,n] of label maps, [T,n,n] of CAMs at T thresholds; boundary: [n+1,n+1], 0 if not asked for;
    images: how many; per_image: (name, mIoU, pixel accuracy) of every label map.
    """
    confusion: np.ndarray
    boundary: np.ndarray | int = 0
    images: int = 1
    per_image: tuple[tuple[str, float, float], ...] = ()


def score(dataset: TagDataset, folder: Folder, jobs: ImageJobs, thresholds: Sequence[float] = (),
          boundary: bool = False) -> Tally:
    """Compare a folder's label maps, or its CAMs at `thresholds`, with the masks of all images that have one.

    InputError names a missing or bad file; jobs that skip bad files go on without.
    """
    present, known = folder.names(), [index for index in range(len(dataset)) if dataset.has_mask(index)]
    jobs.leave_out({index: f"{folder.path}: no file for image {dataset.names[index]}" for index in known
                    if dataset.names[index] not in present and index not in jobs.failures})
    work = partial(_tally, dataset, folder, thresholds, boundary)
    total = jobs.total(f"scoring {folder.path}", work, known)
    if total is None:
        raise InputError(next(iter(jobs.failures.values()),
                              f"{folder.path}: none of this split's images has a mask to compare with"))
    return Tally(*total)


def _tally(dataset: TagDataset, folder: Folder, thresholds: Sequence[float], boundary: bool,
           index: int) -> Tally:
    name, truth, n = dataset.names[index], dataset.load_mask(index), len(dataset.classes) + 1
    with input_errors(f"{folder.path / name}: "):
        if thresholds:
            return Tally(threshold_confusions(*folder.maps(name, truth.shape), truth, thresholds, n))
        labels = folder.labels(name, truth.shape)
        table = confusion(labels, truth, n)
        bands = boundary_confusion(labels, truth, n) if boundary else 0
    figures = scores(table)
    return Tally(table, bands, 1, ((name, figures["miou"], figures["accuracy"]),))


def miou_curve(tables: np.ndarray, thresholds: Iterable[float | None], names: Sequence[str]) -> dict:
    """Confusions [T,n,n] as {"curve": [{"threshold", "miou", "iou": {class: value}}...], "best": item}.

    In percent over the classes (`names`, background first) that occur in truth or prediction.
    """
    figures = scores(tables)
    points = [{"threshold": threshold, "miou": round(float(miou), 4), "iou": by_class(iou, names)}
              for threshold, miou, iou in zip(thresholds, figures["miou"], figures["iou"])]
    return {"curve": points, "best": max(points, key=lambda point: point["miou"])}


def by_class(values: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Values [n] by class name, absent classes (NaN) left out."""
    return {name: round(float(value), 4) for name, value in zip(names, values) if np.isfinite(value)}


def class_figures(table: np.ndarray, names: Sequence[str]) -> dict:
    """Of a confusion [n,n], in percent: {miou, iou by class, taken_for, taken_from}.

    taken_for: class -> the other classes that its true pixels were taken for; taken_from: class -> the other
    classes that its predicted pixels truly are of. Up to three each, of 1 % or more.
    """
    figures = scores(table)
    return {"miou": float(figures["miou"]), "iou": by_class(figures["iou"], names),
            "taken_for": _others(table, names), "taken_from": _others(table.T, names)}


def _others(table: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Row -> the largest shares of other columns, in percent."""
    shares, others = 100 * table / np.maximum(table.sum(1, keepdims=True), 1), {}
    for index, name in enumerate(names):
        largest = [column for column in np.argsort(-shares[index], kind="stable") if column != index][:3]
        others[name] = {names[column]: round(float(shares[index, column]), 2) for column in largest
                        if shares[index, column] >= 1}
    return others


def print_curve(points: Sequence[dict]) -> None:
    """Print the mIoU of `miou_curve`'s points under their thresholds, ten to a line."""
    for start in range(0, len(points), 10):
        line = points[start:start + 10]
        print("threshold " + " ".join(f"{point['threshold']:6.2f}" for point in line))
        print("mIoU      " + " ".join(f"{point['miou']:6.2f}" for point in line))


def print_cam_curve(dataset: TagDataset, cams: Path) -> dict:
    """Print a folder's CAM mIoU over thresholds; the best with its `class_figures`, {} without masks."""
    if not dataset.has_masks:
        print("no masks: no mIoU")
        return {}
    tally = score(dataset, CamFolder(cams), ImageJobs(dataset.names), THRESHOLDS)
    names = ["background", *dataset.classes]
    curve = miou_curve(tally.confusion, THRESHOLDS, names)
    print_curve(curve["curve"])
    threshold, miou = curve["best"]["threshold"], curve["best"]["miou"]
    print(f"best CAM mIoU {miou:.2f} at threshold {threshold:.2f} ({tally.images} images)")
    figures = class_figures(tally.confusion[THRESHOLDS.index(threshold)], names)
    return {**figures, "threshold": threshold, "miou": miou}


def print_label_miou(dataset: TagDataset, folder: Path, what: str, workers: int = 0) -> dict:
    """Print the mIoU of a folder of label maps on the images with masks; its `class_figures`, {} without."""
    if not dataset.has_masks:
        print(f"no masks: no mIoU of the {what}")
        return {}
    tally = score(dataset, LabelFolder(folder), ImageJobs(dataset.names, workers))
    figures = scores(tally.confusion)
    print(f"{what} mIoU {figures['miou']:.2f} ({tally.images} images, {figures['classes']} classes occur)")
    return class_figures(tally.confusion, ["background", *dataset.classes])
