"""What the pseudo mask of an image is made from: its pixels, its CAM file and perhaps its segments."""
from pathlib import Path

import numpy as np

from ..datasets import TagDataset
from ..datasets.image_files import files_of
from ..files import nfc
from .cam_files import CamFile, list_cams, read_own_cam


def read_inputs(dataset: TagDataset, cams: Path, index: int) -> tuple[np.ndarray, CamFile]:
    """The pixels uint8 [H, W, 3] of one image and its CAM file, which is checked against the data set."""
    file = read_own_cam(dataset, cams, index)
    return np.asarray(dataset.load_image(index)), file


def missing_inputs(dataset: TagDataset, cams: Path, segments: Path | None) -> dict[int, str]:
    """Images without a CAM file, or without segments where these are asked for: {number: error line}."""
    with_cams = set(list_cams(cams))
    with_segments = None
    if segments is not None:
        with_segments = {nfc(path.stem) for path in files_of(segments, (".png", ".json"))}
    problems = {}
    for index, name in enumerate(dataset.names):
        if name not in with_cams:
            problems[index] = f"{cams}/{name}.npz (or .npy): no CAM file for this image"
        elif with_segments is not None and name not in with_segments:
            problems[index] = f"{segments}/{name}.png (or .json): no segments for this image"
    return problems
