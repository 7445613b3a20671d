"""The background thresholds of `make_pseudo.py --threshold auto`: those of highest mIoU."""
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

PAPER_THRESHOLD = 0.25  # IRN's sem_seg_bg_thres

# (pixels uint8 [H, W, 3], CAM file) of an image -> its maps after the walk.
ImageWalk = Callable[[np.ndarray, CamFile], Tensor]


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
    are the paper's threshold. InputError: no masked image has a usable CAM file, or the file is damaged.
    """
    stored = out / "thresholds.json"
    if not broadcast(stored.exists()):
        masked = [index for index, name in enumerate(dataset.names)
                  if name in scored and dataset.masked[index]]
        if not masked:
            print(f"--threshold auto: there are no masks, so the paper's {PAPER_THRESHOLD} is used")
            return PAPER_THRESHOLD, PAPER_THRESHOLD
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
