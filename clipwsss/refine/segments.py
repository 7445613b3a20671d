"""Class-agnostic segments (Segment Anything and the like): their files, and label maps snapped to them."""
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ..datasets.coco_masks import decode
from ..files import atomic_path
from ..errors import InputError


def snap(mask: np.ndarray, segments: Iterable[np.ndarray], inside: float = 0.5,
         cover: float = 0.85) -> np.ndarray:
    """Give each segment one class by the votes of its pixels; pixels of no segment keep their label.

    mask uint8 [H, W], segments bool [H, W]. A class qualifies with more than `inside` of a segment's pixels,
    or if at least `cover` of the class lies in it; the one with most pixels wins, with none it is background.
    Where segments overlap, classes go over background, smaller over larger. 255 neither votes nor changes.
    Rule: Chen et al., arXiv 2305.05803 (the release takes the first class that qualifies, later ones on top).
    """
    totals = np.bincount(mask.ravel(), minlength=256)
    voters = mask != 255
    covered, taken = np.zeros(mask.shape, bool), []
    for segment in segments:
        if segment.shape != mask.shape:
            raise ValueError(f"a segment of size {segment.shape} for a mask of {mask.shape} (H, W)")
        covered |= segment
        votes = np.bincount(mask[segment & voters], minlength=255)
        fit = (votes > inside * votes.sum()) | (votes >= np.maximum(cover * totals[:255], 1))
        fit[0] = False
        if fit.any():
            taken.append((int(segment.sum()), int((votes * fit).argmax()), segment))
    snapped = np.where(covered & voters, 0, mask).astype(np.uint8)
    for _, winner, segment in sorted(taken, key=lambda item: -item[0]):
        snapped[segment & voters] = winner
    return snapped


def read_segments(folder: Path | str, name: str, size: tuple[int, int]) -> list[np.ndarray]:
    """The segments of one image as bool [H, W] masks, from FOLDER/NAME.png or FOLDER/NAME.json.

    PNG: a label map of 8 or 16 bits, every value but 0 is a segment. JSON: a list of regions (SA-1B: under
    "annotations"), each with COCO's "segmentation" (run lengths or polygons). InputError names a bad file.
    """
    paths = [path for path in (Path(folder) / f"{name}.png", Path(folder) / f"{name}.json") if path.is_file()]
    if len(paths) != 1:
        found = "both are there, keep one" if paths else "no such file of segments"
        raise InputError(f"{Path(folder) / name}.png (or .json): {found}")
    path, number = paths[0], 0
    try:
        if path.suffix == ".png":
            with Image.open(path) as file:
                labels = np.array(file)
            if labels.ndim != 2:
                raise ValueError(f"a map of segments has one channel, this is {file.mode}")
            if labels.shape != tuple(size):
                raise ValueError(f"it is {list(labels.shape)}, its image {list(size)} (H, W)")
            return [labels == value for value in np.unique(labels) if value != 0]
        regions, segments = json.loads(path.read_text()), []
        regions = regions["annotations"] if isinstance(regions, dict) else regions
        for number, region in enumerate(regions, 1):
            segments.append(decode(region["segmentation"], tuple(size)))
        return segments
    except (OSError, SyntaxError, ValueError, TypeError, KeyError) as error:
        region = f"region {number}: " if number else ""
        raise InputError(f"{path}: no segments of this image ({region}{error})") from error


def write_segments(folder: Path | str, name: str, segments: Iterable[np.ndarray]) -> None:
    """Write bool [H, W] masks, which may overlap, as FOLDER/NAME.json in SAM's form (COCO's run lengths)."""
    regions = []
    for segment in segments:
        flat = np.asarray(segment, bool).T.ravel()
        edges = np.flatnonzero(np.diff(flat, prepend=False))
        counts = np.diff(edges, prepend=0, append=flat.size).tolist()
        regions.append({"segmentation": {"size": list(segment.shape), "counts": counts}})
    with atomic_path(Path(folder) / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(regions))
