"""Class-agnostic segments (Segment Anything and the like): their files, and label maps snapped to them."""
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from .datasets.coco_masks import decode
from .engine import atomic_path
from .errors import InputError


def snap(mask: np.ndarray, segments: Iterable[np.ndarray], inside: float = 0.5,
         cover: float = 0.85) -> np.ndarray:
    """Give each segment one class by the votes of its pixels; pixels of no segment keep their label.

    mask uint8 [H, W], 0 background; segments bool [H, W] each, which may overlap. A class qualifies for a
    segment if it has more than `inside` of the segment's pixels, or if at least `cover` of the class lies in
    it; of several the one with most pixels there is taken, with none the segment is background. Where
    segments overlap, one with a class goes over background and a smaller one over a larger one. Rule and
    values: Chen et al., "SAM enhanced pseudo labels for WSSS", arXiv 2305.05803, and its release; that one
    takes the first class that qualifies and lets later classes paint over earlier ones, so it depends on
    their numbers. Ignored pixels (255) neither vote nor change. ValueError on segments of another size.
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

    PNG: a label map of 8 or 16 bits, every value but 0 is a segment. JSON: a list of regions, or a dictionary
    whose "annotations" are one (SA-1B), each region a dictionary with COCO's "segmentation" (run lengths or
    polygons). InputError names a file that is missing, cannot be read or has another size than the image.
    """
    paths = [path for path in (Path(folder) / f"{name}.png", Path(folder) / f"{name}.json") if path.is_file()]
    if len(paths) != 1:
        found = "both are there, keep one" if paths else "no such file of segments"
        raise InputError(f"{Path(folder) / name}.png (or .json): {found}")
    path = paths[0]
    try:
        return _read_png(path, size) if path.suffix == ".png" else _read_json(path, size)
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a readable file of segments ({error})") from error


def write_segments(folder: Path | str, name: str, segments: Iterable[np.ndarray]) -> Path:
    """Write bool [H, W] masks, which may overlap, as FOLDER/NAME.json in SAM's form (COCO's run lengths)."""
    regions = []
    for segment in segments:
        flat = np.asarray(segment, bool).T.ravel()
        edges = np.flatnonzero(np.diff(flat, prepend=False))
        counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        runs = {"size": list(segment.shape), "counts": counts}
        regions.append({"segmentation": runs, "area": int(flat.sum())})
    path = Path(folder) / f"{name}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(regions))
    return path


def _read_png(path: Path, size: tuple[int, int]) -> list[np.ndarray]:
    with Image.open(path) as file:
        labels = np.array(file)
    if labels.ndim != 2:
        raise InputError(f"{path}: a map of segments has one channel, this is {file.mode}")
    if labels.shape != tuple(size):
        raise InputError(f"{path}: is {list(labels.shape)}, its image {list(size)} (H, W)")
    return [labels == value for value in np.unique(labels) if value != 0]


def _read_json(path: Path, size: tuple[int, int]) -> list[np.ndarray]:
    regions = json.loads(path.read_text())
    regions = regions["annotations"] if isinstance(regions, dict) else regions
    segments = []
    for number, region in enumerate(regions, 1):
        try:
            segments.append(decode(region["segmentation"], tuple(size)))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: region {number}: {error}") from error
    return segments
