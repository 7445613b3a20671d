"""Scores of folders of CAMs and of label maps against a data set's true masks."""
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..cams.cam_files import check_cam, list_cams, read_cam, resize_cam
from ..datasets import TagDataset
from ..datasets.jobs import ImageJobs
from ..datasets.image_files import MOST_CLASSES, files_of, read_mask
from ..distributed import gather, shard
from ..errors import InputError, input_errors
from ..files import existing, nfc
from ..progress import Progress
from .metrics import IGNORE, add_counts, confusion, scores, threshold_counts

THRESHOLDS = tuple(np.round(np.arange(0.01, 1.0, 0.01), 2).tolist())  # the step is that of the releases
MOST_PRINTED = 20  # of a curve of more thresholds every fifth is printed
CAM_THRESHOLD = 0.25  # the background threshold of CAMs where no masks are there to choose one

NOTHING_SCORED = "the true masks ignore every pixel, so no mIoU is computed"

ImageScore = tuple[str, float, float]  # an image's name, its mIoU and its pixel accuracy, in percent


class MaskScore(NamedTuple):
    """The score of one image's pseudo mask, or, field by field, the sum of the scores of several images.

    images, pixels: numbers of images and of their pixels. changed: number of pixels on which the pseudo mask
    differs from the mask of the CAMs alone. unsure: number of pixels of 255, which no score counts.
    with_truth: number of images that were compared with a true mask. refined, unrefined: confusions int64
    [n,n] of the pseudo mask and of the mask of the CAMs alone with the true mask; 0 where there is none.
    quality: a `MaskQuality` of each image.
    """
    images: int
    pixels: int
    changed: int
    unsure: int
    with_truth: int
    refined: NDArray | int
    unrefined: NDArray | int
    quality: tuple = ()


# ---- label maps of folders

def list_label_maps(folder: Path) -> list[str]:
    """Names of the images that have a label map NAME.png in a folder; InputError where there is none."""
    names = [nfc(path.stem) for path in files_of(folder)]
    if not names:
        raise InputError(f"{folder}: no label maps (.png) in this folder")
    return names


def read_labels(folder: Path, name: str, size: tuple[int, int], threshold: float | None) -> NDArray:
    """Label map uint8 [H,W] of an image of `size` (H, W).

    threshold: None for a folder of label maps NAME.png, which are read as they are. For a folder of CAM
    files, the background threshold: a pixel is of the class of its largest map where that map exceeds it.
    InputError names a missing or bad file.
    """
    if threshold is None:
        return read_mask(existing(folder / f"{name}.png"))
    file = check_cam(read_cam(folder, name), folder / name, size, MOST_CLASSES)
    maps = resize_cam(file, size)
    foreground = maps.max(0) > np.float32(threshold)
    return np.where(foreground, file.keys[maps.argmax(0)] + 1, 0).astype(np.uint8)


# ---- confusions of folders

def score_label_maps(dataset: TagDataset, folder: Path, jobs: ImageJobs,
                     threshold: float | None = None) -> tuple[NDArray, list[ImageScore]]:
    """Confusion int64 [n,n] of a folder's label maps with all true masks, and the scores of each image.

    threshold: as in `read_labels`. InputError names a missing or bad file; jobs that skip bad files leave
    its image out.
    """
    names = list_label_maps(folder) if threshold is None else list_cams(folder)
    masked = _masked_with_file(dataset, folder, names, jobs)
    work = partial(_score_label_map, dataset, folder, threshold)
    total = jobs.total(f"scoring {folder}", work, masked)
    if total is None:
        raise _nothing_scored(folder, jobs)
    table, image_scores, unsure = total
    if unsure:
        share = 100 * unsure / (unsure + table.sum())
        print(f"{folder}: {share:.2f} % of the pixels are unsure (255) and are not scored")
    return table, list(image_scores)


def _score_label_map(dataset: TagDataset, folder: Path, threshold: float | None,
                     index: int) -> tuple[NDArray, tuple[ImageScore], int]:
    """One image's confusion int64 [n,n], its score and its number of unsure pixels.

    The score is in a tuple so that sums join the scores of images. threshold: as in `read_labels`. InputError
    names a missing or bad file.
    """
    name = dataset.names[index]
    truth = dataset.load_mask(index)
    with input_errors(f"{folder / name}: "):
        labels = read_labels(folder, name, truth.shape, threshold)
        table = confusion(labels, truth, len(dataset.classes) + 1)
    figures = scores(table)
    unsure = int(((labels == IGNORE) & (truth != IGNORE)).sum())
    return table, ((name, figures["miou"], figures["accuracy"]),), unsure


def score_cams(dataset: TagDataset, folder: Path, jobs: ImageJobs,
               thresholds: Sequence[float]) -> tuple[NDArray, int]:
    """Confusions int64 [T,n,n] of a folder's CAM files at T thresholds, and the number of images scored.

    InputError names a missing or bad file; jobs that skip bad files leave its image out.
    """
    masked = _masked_with_file(dataset, folder, list_cams(folder), jobs)
    tables = empty_tables(dataset, thresholds)
    images = 0
    for counts in jobs.run(f"scoring {folder}", partial(cam_counts, dataset, folder, thresholds), masked):
        add_counts(tables, counts)
        images += 1
    tables = sum(gather(tables))
    images = sum(gather(images))
    if images == 0:
        raise _nothing_scored(folder, jobs)
    return tables, images


def empty_tables(dataset: TagDataset, thresholds: Sequence[float]) -> NDArray:
    """Confusions int64 [T,n,n] of no pixel at T thresholds, to which `add_counts` adds those of images."""
    n = len(dataset.classes) + 1
    return np.zeros((len(thresholds), n, n), np.int64)


def cam_counts(dataset: TagDataset, folder: Path, thresholds: Sequence[float],
               index: int) -> tuple[NDArray, NDArray, NDArray]:
    """The `threshold_counts` of one image's CAM file; InputError names a bad file."""
    name = dataset.names[index]
    truth = dataset.load_mask(index)
    with input_errors(f"{folder / name}: "):
        file = check_cam(read_cam(folder, name), folder / name, truth.shape, len(dataset.classes))
        maps = resize_cam(file, truth.shape)
        return threshold_counts(maps, file.keys, truth, thresholds, len(dataset.classes) + 1)


def _masked_with_file(dataset: TagDataset, folder: Path, names: Iterable[str], jobs: ImageJobs) -> list[int]:
    """Numbers of the images with a true mask. Those without a file, which `names` have, are bad."""
    present = set(names)
    masked = [index for index in range(len(dataset)) if dataset.masked[index]]
    missing = {index: f"{folder}: no file for image {dataset.names[index]}" for index in masked
               if dataset.names[index] not in present and index not in jobs.failures}
    jobs.leave_out(missing)
    return masked


def _nothing_scored(folder: Path, jobs: ImageJobs) -> InputError:
    """Why no image was scored: the first failure, or that there are no true masks."""
    no_mask = f"{folder}: no image of this split has a true mask to be compared with"
    return InputError(next(iter(jobs.failures.values()), no_mask))


# ---- figures of confusions

def miou_curve(tables: NDArray, thresholds: Iterable[float | None], names: Sequence[str]) -> dict:
    """mIoU and class IoUs in percent of confusions [T,n,n], one for each threshold.

    Returns {"curve": [{"threshold", "miou", "iou": {class: value}}, ...], "best": the point of highest mIoU}.
    names: the classes, background first.
    """
    figures = scores(tables)
    curve = [{"threshold": threshold, "miou": round(float(miou), 4), "iou": by_class(iou, names)}
             for threshold, miou, iou in zip(thresholds, figures["miou"], figures["iou"])]
    return {"curve": curve, "best": max(curve, key=lambda point: point["miou"])}


def by_class(values: NDArray, names: Sequence[str]) -> dict[str, float]:
    """Values [n] by class name; classes whose value is NaN are left out."""
    return {name: round(float(value), 4) for name, value in zip(names, values) if np.isfinite(value)}


def class_figures(table: NDArray, names: Sequence[str]) -> dict:
    """Figures in percent of a confusion [n,n]: {"miou", "iou", "taken_for", "taken_from"}.

    iou: the IoU of each class. taken_for: for each class, the other classes that its true pixels were
    predicted as. taken_from: for each class, the other true classes of the pixels predicted as it. These two
    list at most three classes each, those with 1 % or more, the largest first.
    """
    figures = scores(table)
    result = {"miou": float(figures["miou"]), "iou": by_class(figures["iou"], names)}
    for direction, counts in (("taken_for", table), ("taken_from", table.T)):
        shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)  # of each row, in percent
        result[direction] = {}
        for row, name in enumerate(names):
            descending = np.argsort(-shares[row], kind="stable")
            others = [column for column in descending if column != row]
            result[direction][name] = {names[column]: round(float(shares[row, column]), 2)
                                       for column in others[:3] if shares[row, column] >= 1}
    return result


def worst_first(figure: float) -> tuple[bool, float]:
    """The key by which rows are sorted, the lowest figure first and rows without a figure (NaN) last."""
    return bool(np.isnan(figure)), float(figure)


# ---- printed figures

def print_curve(curve: Sequence[dict]) -> None:
    """Print points of `miou_curve`: the mIoU below each threshold, ten to a line.

    Of more than MOST_PRINTED points every fifth is printed: of 0.01, 0.02, ... these are 0.05, 0.10, ...
    """
    if len(curve) > MOST_PRINTED:
        curve = curve[4::5]
    for start in range(0, len(curve), 10):
        points = curve[start:start + 10]
        print("threshold " + " ".join(f"{point['threshold']:6.2f}" for point in points))
        print("mIoU      " + " ".join(f"{point['miou']:6.2f}" for point in points))


def print_cam_curve(dataset: TagDataset, cams: Path) -> dict:
    """Print the mIoU of a folder of CAM files at all THRESHOLDS, over the images that have a true mask.

    Returns the best threshold with its mIoU and `class_figures`; {} without a scored pixel. Each
    process scores its part of the images. InputError names a missing or bad file.
    """
    if not dataset.has_masks:
        print("there are no masks, so no mIoU is computed")
        return {}
    names = ["background", *dataset.classes]
    masked = [index for index in range(len(dataset)) if dataset.masked[index]]
    own_part = shard(masked)
    tables = empty_tables(dataset, THRESHOLDS)
    progress = Progress(f"scoring {cams}", len(own_part))
    for index in own_part:
        add_counts(tables, cam_counts(dataset, cams, THRESHOLDS, index))
        progress.update(1)
    progress.close()
    tables = sum(gather(tables))
    if not tables.any():
        print(NOTHING_SCORED)
        return {}
    curve = miou_curve(tables, THRESHOLDS, names)
    print_curve(curve["curve"])
    threshold = curve["best"]["threshold"]
    miou = curve["best"]["miou"]
    print(f"best CAM mIoU {miou:.2f} at threshold {threshold:.2f} ({len(masked)} images)")
    figures = class_figures(tables[THRESHOLDS.index(threshold)], names)
    return {**figures, "threshold": threshold, "miou": miou}


def print_label_miou(dataset: TagDataset, folder: Path, what: str, workers: int = 0) -> dict:
    """Print the mIoU of a folder of label maps, named `what`, over the images that have a true mask.

    Returns its `class_figures`; {} without a scored pixel.
    """
    if not dataset.has_masks:
        print(f"there are no masks, so no mIoU of the {what} is computed")
        return {}
    table, image_scores = score_label_maps(dataset, folder, ImageJobs(dataset.names, workers))
    if not table.any():
        print(NOTHING_SCORED)
        return {}
    figures = scores(table)
    print(f"{what} mIoU {figures['miou']:.2f} ({len(image_scores)} images, {figures['classes']} classes "
          "occur)")
    return class_figures(table, ["background", *dataset.classes])
