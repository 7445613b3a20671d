"""Background thresholds that make_pseudo.py finds: by true masks (--threshold auto), or without (otsu)."""
import math
from collections.abc import Callable, Container, Sequence
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
    Without masks of `scored` images, `auto` is `otsu`. What is found is kept in OUT/thresholds.json, so that
    a run that goes on does not search again. InputError: no image that is looked at has a usable CAM file, or
    the file is damaged.
    """
    if rule not in ("auto", "otsu"):
        return rule, rule
    masked = [index for index, name in enumerate(dataset.names) if name in scored and dataset.masked[index]]
    if rule == "auto" and not masked:
        print("--threshold auto: there are no masks, so Otsu's threshold is taken")
        rule = "otsu"
    stored = out / "thresholds.json"
    if not broadcast(stored.exists()):
        if rule == "auto":
            found = best_thresholds(dataset, cams, walk_image, masked, jobs)
        else:
            found = otsu_thresholds(dataset, cams, walk_image, jobs)
        write_json(found, stored)
        barrier()
    with input_errors(f"{stored}: damaged, delete it to search again: ", ValueError, TypeError, KeyError):
        refined, unrefined = read_json(stored)
        if rule == "auto":
            print(f"--threshold auto: {refined['threshold']:.2f} for the maps after the walk (mIoU "
                  f"{refined['miou']:.2f}), {unrefined['threshold']:.2f} for the CAMs alone")
        else:
            print(f"Otsu's threshold: {refined['threshold']:.2f} for the maps after the walk, "
                  f"{unrefined['threshold']:.2f} for the CAMs alone")
        return refined["threshold"], unrefined["threshold"]


def walked_maps(dataset: TagDataset, cams: Path, walk_image: ImageWalk,
                index: int) -> tuple[CamFile, np.ndarray, np.ndarray]:
    """(CAM file, maps after the walk, the CAMs alone) of one image; maps [k, H, W] at the image's size."""
    pixels, file = read_inputs(dataset, cams, index)
    with torch.inference_mode():
        maps = walk_image(pixels, file).numpy()
    return file, maps, resize_cam(file, pixels.shape[:2])


def image_counts(dataset: TagDataset, cams: Path, walk_image: ImageWalk, index: int) -> tuple[tuple, tuple]:
    """`threshold_counts` of one image at all THRESHOLDS: of the maps after the walk, and of the CAMs."""
    file, maps, unrefined = walked_maps(dataset, cams, walk_image, index)
    truth = dataset.load_mask(index)
    n = len(dataset.classes) + 1
    return (threshold_counts(maps, file.keys, truth, THRESHOLDS, n),
            threshold_counts(unrefined, file.keys, truth, THRESHOLDS, n))


def best_thresholds(dataset: TagDataset, cams: Path, walk_image: ImageWalk, masked: Sequence[int],
                    jobs: ImageJobs) -> list[dict]:
    """{threshold, miou} of highest mIoU on the images `masked`: after the walk, and of the CAMs alone."""
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
    return [miou_curve(tables, THRESHOLDS, names)["best"] for tables in (refined_tables, unrefined_tables)]


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
    _, maps, unrefined = walked_maps(dataset, cams, walk_image, index)
    histograms = []
    for strongest in (maps.max(axis=0), unrefined.max(axis=0)):
        histograms.append(np.histogram(strongest.clip(0, 1), OTSU_BINS, (0, 1))[0])  # 1.0001 is rounded
    return tuple(histograms)


def otsu_thresholds(dataset: TagDataset, cams: Path, walk_image: ImageWalk, jobs: ImageJobs) -> list[dict]:
    """{threshold} by Otsu's method over the pixels of up to OTSU_IMAGES images together, without true masks.

    The first is of the maps after the walk, the second of the CAMs alone.
    """
    step = math.ceil(len(dataset) / OTSU_IMAGES)
    histograms = jobs.total("thresholds", partial(image_histograms, dataset, cams, walk_image),
                            range(0, len(dataset), step))
    if histograms is None:
        raise InputError("--threshold otsu: no image has a usable CAM file")
    return [{"threshold": otsu_threshold(counts)} for counts in histograms]
