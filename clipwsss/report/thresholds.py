"""Background thresholds that make_pseudo.py finds: by true masks (--threshold auto), or without (otsu)."""
import math
from collections.abc import Callable, Container
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cams.cam_files import CamFile, resize_cam
from ..cams.mask_inputs import read_inputs
from ..datasets import TagDataset
from ..datasets.jobs import ImageJobs
from ..distributed import barrier, broadcast, gather
from ..errors import InputError, input_errors
from ..files import read_json, write_json
from .metrics import add_counts, threshold_counts
from .scoring import THRESHOLDS, empty_tables, miou_curve

OTSU_IMAGES = 500  # the most images whose pixels Otsu's threshold is taken from
OTSU_BINS = 100

# (pixels uint8 [H, W, 3], CAM file) of an image -> its maps after the walk.
ImageWalk = Callable[[np.ndarray, CamFile], Tensor]


def find_thresholds(rule: float | str, out: Path, dataset: TagDataset, cams: Path, walk_image: ImageWalk,
                    scored: Container[str], jobs: ImageJobs) -> tuple[float | str, float | str]:
    """The background thresholds that --threshold asks for: of the maps after the walk, and of the CAMs alone.

    rule: `auto`, see `best_thresholds`, or `otsu`, see `otsu_thresholds`; a number, and `alpha`, serve both.
    """
    if rule == "auto":
        return best_thresholds(out, dataset, cams, walk_image, scored, jobs)
    if rule == "otsu":
        return otsu_thresholds(out, dataset, cams, walk_image, jobs)
    return rule, rule


def image_counts(dataset: TagDataset, cams: Path, walk_image: ImageWalk, index: int) -> tuple[tuple, tuple]:
    """`threshold_counts` of one image at all THRESHOLDS: of the maps after the walk, and of the CAMs."""
    pixels, file = read_inputs(dataset, cams, index)
    truth = dataset.load_mask(index)
    n = len(dataset.classes) + 1
    with torch.inference_mode():
        maps = walk_image(pixels, file).numpy()
    unrefined = resize_cam(file, pixels.shape[:2])
    return (threshold_counts(maps, file.keys, truth, THRESHOLDS, n),
            threshold_counts(unrefined, file.keys, truth, THRESHOLDS, n))


def best_thresholds(out: Path, dataset: TagDataset, cams: Path, walk_image: ImageWalk,
                    scored: Container[str], jobs: ImageJobs) -> tuple[float, float]:
    """Background thresholds of highest mIoU on the `scored` images: after the walk, and of the CAMs alone.

    They are kept in OUT/thresholds.json, so that a run that goes on does not search again. Without masks both
    are Otsu's. InputError: no masked image has a usable CAM file, or the file is damaged.
    """
    masked = [index for index, name in enumerate(dataset.names) if name in scored and dataset.masked[index]]
    if not masked:
        print("--threshold auto: there are no masks, so Otsu's threshold is taken")
        return otsu_thresholds(out, dataset, cams, walk_image, jobs)
    stored = out / "thresholds.json"
    if not broadcast(stored.exists()):
        refined_tables = empty_tables(dataset, THRESHOLDS)
        unrefined_tables = empty_tables(dataset, THRESHOLDS)
        for counts in jobs.run("thresholds", partial(image_counts, dataset, cams, walk_image), masked):
            add_counts(refined_tables, counts[0])
            add_counts(unrefined_tables, counts[1])
        refined_tables = sum(gather(refined_tables))
        unrefined_tables = sum(gather(unrefined_tables))
        if not refined_tables.any():
            raise InputError("--threshold auto: no image with a mask has a usable CAM file, or the masks "
                             "ignore every pixel")
        names = ["background", *dataset.classes]
        both = [refined_tables, unrefined_tables]
        write_json([miou_curve(tables, THRESHOLDS, names)["best"] for tables in both], stored)
        barrier()
    with input_errors(f"{stored}: damaged, delete it to search again: ", ValueError, TypeError, KeyError):
        refined, unrefined = read_json(stored)
        print(f"--threshold auto: {refined['threshold']:.2f} for the maps after the walk (mIoU "
              f"{refined['miou']:.2f}), {unrefined['threshold']:.2f} for the CAMs alone")
        return refined["threshold"], unrefined["threshold"]


def otsu_threshold(counts: np.ndarray) -> float:
    """Otsu's threshold in (0,1) of values in [0,1], from the counts [n] of their histogram of n equal bins.

    It parts the values into two groups with the largest variance between the groups' means, and is tuned on
    nothing (Otsu, IEEE SMC 1979). Of several equal ones it is the middle one.
    """
    values = (np.arange(len(counts)) + 0.5) / len(counts)
    below = counts.cumsum()[:-1].astype(float)
    above = counts.sum() - below
    sum_below = (counts * values).cumsum()[:-1]
    sum_above = (counts * values).sum() - sum_below
    difference = sum_above / above.clip(1) - sum_below / below.clip(1)
    variance = below * above * difference**2
    best = np.flatnonzero(variance == variance.max())
    return float((best[len(best) // 2] + 1) / len(counts))


def image_histograms(dataset: TagDataset, cams: Path, walk_image: ImageWalk,
                     index: int) -> tuple[np.ndarray, np.ndarray]:
    """Histograms of an image's largest map at each pixel: after the walk, and of the CAMs alone."""
    pixels, file = read_inputs(dataset, cams, index)
    with torch.inference_mode():
        maps = walk_image(pixels, file).numpy()
    unrefined = resize_cam(file, pixels.shape[:2])
    histograms = []
    for strongest in (maps.max(axis=0), unrefined.max(axis=0)):
        histograms.append(np.histogram(strongest.clip(0, 1), OTSU_BINS, (0, 1))[0])  # 1.0001 is rounded
    return tuple(histograms)


def otsu_thresholds(out: Path, dataset: TagDataset, cams: Path, walk_image: ImageWalk,
                    jobs: ImageJobs) -> tuple[float, float]:
    """Background thresholds by Otsu's method over the pixels of up to OTSU_IMAGES images together.

    No true mask is used. They are of the maps after the walk, and of the CAMs alone, and are kept in
    OUT/thresholds.json, so that a run that goes on has the same. InputError: no image has a usable CAM file,
    or the file is damaged.
    """
    stored = out / "thresholds.json"
    if not broadcast(stored.exists()):
        step = math.ceil(len(dataset) / OTSU_IMAGES)
        histograms = jobs.total("thresholds", partial(image_histograms, dataset, cams, walk_image),
                                range(0, len(dataset), step))
        if histograms is None:
            raise InputError("--threshold otsu: no image has a usable CAM file")
        write_json([{"threshold": otsu_threshold(counts)} for counts in histograms], stored)
        barrier()
    with input_errors(f"{stored}: damaged, delete it to search again: ", ValueError, TypeError, KeyError):
        refined, unrefined = [entry["threshold"] for entry in read_json(stored)]
        print(f"Otsu's threshold: {refined:.2f} for the maps after the walk, {unrefined:.2f} for the CAMs "
              "alone")
        return refined, unrefined
