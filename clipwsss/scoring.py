"""Scores of whole folders against a data set's masks: CAM threshold curves and mask folders."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .cam_files import read_cam, resize_cam
from .datasets import TagDataset
from .metrics import scores, threshold_confusions

THRESHOLDS = tuple(np.round(np.arange(0.05, 1.0, 0.05), 2).tolist())


def cam_confusions(dataset: TagDataset, folder: Path, index: int, thresholds: Sequence[float]) -> NDArray:
    """Confusions [T,K+1,K+1] of one image's CAM file at background thresholds; InputError names a file that does not fit."""
    truth = dataset.load_mask(index)
    cam = read_cam(folder, dataset.names[index])
    return threshold_confusions(resize_cam(cam, truth.shape), cam.keys, truth, thresholds, len(dataset.classes) + 1)


def curve(tables: NDArray, thresholds: Sequence[float], names: Sequence[str]) -> dict:
    """The curve of summed confusions [T,n,n] in percent: {"curve": [{"threshold", "miou", "iou"}...], "best": {...}}."""
    rows = []
    for threshold, table in zip(thresholds, tables):
        found = scores(table)
        rows.append({"threshold": float(threshold), "miou": round(float(found["miou"]), 4),
                     "iou": {name: round(float(value), 4) for name, value in zip(names, found["iou"])
                             if np.isfinite(value)}})
    return {"curve": rows, "best": max(rows, key=lambda row: row["miou"])}


def print_cam_curve(dataset: TagDataset, folder: Path, thresholds: Sequence[float] = THRESHOLDS) -> dict | None:
    """Print the CAMs' mIoU over background thresholds on the images with masks; the best row, None without masks."""
    indices = [i for i in range(len(dataset)) if dataset.has_masks and dataset.load_mask(i) is not None]
    if not indices:
        print("no masks: no mIoU")
        return None
    tables = sum(cam_confusions(dataset, folder, i, thresholds) for i in indices)
    found = curve(tables, thresholds, ["background", *dataset.classes])
    print("threshold  " + " ".join(f"{row['threshold']:5.2f}" for row in found["curve"]))
    print("CAM mIoU   " + " ".join(f"{row['miou']:5.1f}" for row in found["curve"]))
    best = found["best"]
    print(f"best CAM mIoU {best['miou']:.2f} at threshold {best['threshold']:.2f} ({len(indices)} images)")
    return {"threshold": best["threshold"], "miou": best["miou"]}
