"""Class-agnostic segments (Segment Anything and the like): their files, and label maps painted from them.

The package transformers, which downloads SAM, writes them by

    generate = pipeline("mask-generation", model="facebook/sam-vit-huge", device=0)
    for path in sorted(Path("mydata/images").glob("*.jpg")):
        masks = generate(Image.open(path).convert("RGB"), points_per_batch=64)["masks"]
        write_segments("segments", path.stem, masks)
"""
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..datasets.coco import decode_mask, encode_mask
from ..files import atomic_path
from ..errors import InputError


class Segment(NamedTuple):
    """A class-agnostic region, bool [H, W], and its level: of SAM's three answers to a point, 0 is a part."""
    mask: np.ndarray
    level: int = 0


def paint(maps: np.ndarray, segments: Sequence[Segment], power: float = 0.6) -> np.ndarray:
    """Labels uint8 [H, W] painted segment by segment: 0 for the background, or 1..k for one of k maps.

    maps: float32 [k, H, W]. A segment's score of a map is the mean of the map, with negative values cut to
    zero. The scores of each map are scaled over the image's segments by (x - min) / (max - min), and the
    background scores (1 - largest score)^power. A segment's label has the highest score. Segments are painted
    by rising level and then by rising score; pixels of no segment are background. Source: FMA-WSSS (arXiv
    2312.03585; gather_norm_bg_argmax in its release).
    """
    painted = np.zeros(maps.shape[1:], np.uint8)
    segments = [segment for segment in segments if segment.mask.any()]
    if not segments:
        return painted
    rectified = np.maximum(maps, 0).reshape(len(maps), -1)
    scores = np.stack([rectified[:, segment.mask.ravel()].mean(1) for segment in segments], 1)
    low = scores.min(1, keepdims=True)
    high = scores.max(1, keepdims=True)
    scores = (scores - low) / (high - low + 1e-7)
    background = (1 - scores.max(0, keepdims=True)) ** power
    scores = np.concatenate([background, scores])
    labels = scores.argmax(0)
    best = scores.max(0)
    order = sorted(range(len(segments)), key=lambda index: (segments[index].level, best[index]))
    for index in order:
        painted[segments[index].mask] = labels[index]
    return painted


def read_segments(folder: Path | str, name: str, size: tuple[int, int]) -> list[Segment]:
    """The segments of one image of this size (H, W), from FOLDER/NAME.png or FOLDER/NAME.json.

    PNG: a label map of 8 or 16 bits, in which every value but 0 is a segment. JSON: a list of regions, or a
    dictionary with this list under "annotations" (SA-1B). A region has COCO's "segmentation" (run lengths or
    polygons) and perhaps FMA-WSSS' "level". Without levels, a segment's level is the number of segments that
    lie in it. InputError names a bad file.
    """
    png = Path(folder) / f"{name}.png"
    regions = Path(folder) / f"{name}.json"
    if png.is_file() and regions.is_file():
        raise InputError(f"{png} and {regions.name}: both exist; keep one of them")
    if png.is_file():
        return _read_png(png, tuple(size))
    if regions.is_file():
        return _read_json(regions, tuple(size))
    raise InputError(f"{png} (or .json): no such file of segments")


def _read_png(path: Path, size: tuple[int, int]) -> list[Segment]:
    """The segments of a PNG label map of this size (H, W), by rising value; InputError for a bad file."""
    try:
        with Image.open(path) as file:
            labels = np.array(file)
            mode = file.mode
    except (OSError, SyntaxError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a readable label map of segments ({error})") from error
    if labels.ndim != 2:
        raise InputError(f"{path}: a label map of segments has one channel, this image is {mode}")
    if labels.shape != size:
        raise InputError(f"{path}: the segments are {list(labels.shape)}, their image is {list(size)} (H, W)")
    return [Segment(labels == value) for value in np.unique(labels) if value != 0]


def _read_json(path: Path, size: tuple[int, int]) -> list[Segment]:
    """The segments of a JSON file of regions for an image of this size (H, W); InputError for a bad file."""
    try:
        regions = json.loads(path.read_text())
        if isinstance(regions, dict):
            regions = regions["annotations"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a readable list of segments ({error})") from error
    segments = []
    try:
        for region in regions:
            mask = decode_mask(region["segmentation"], size)
            segments.append(Segment(mask, int(region.get("level", -1))))
    except (ValueError, TypeError, KeyError) as error:
        number = len(segments) + 1
        raise InputError(f"{path}: region {number} is no segment of this image ({error})") from error
    if any(segment.level < 0 for segment in segments):
        return nest(segments)
    return segments


def nest(segments: Sequence[Segment], share: float = 0.9) -> list[Segment]:
    """The segments with new levels: a segment's level is the number of smaller segments that lie in it.

    A segment lies in a larger one that has at least `share` of its pixels.
    """
    flat = np.stack([segment.mask.ravel() for segment in segments]).astype(np.float32)
    common = flat @ flat.T
    sizes = flat.sum(1)
    # inside[i, j]: at least `share` of segment j lies in segment i, and i is the larger one.
    inside = (common >= share * sizes) & (sizes[:, None] > sizes)
    levels = inside.sum(1)
    return [segment._replace(level=int(level)) for segment, level in zip(segments, levels)]


def write_segments(folder: Path | str, name: str, segments: Iterable[np.ndarray]) -> None:
    """Write bool [H, W] masks, which may overlap, as FOLDER/NAME.json in SAM's form (COCO's run lengths)."""
    regions = [{"segmentation": encode_mask(np.asarray(segment, bool))} for segment in segments]
    with atomic_path(Path(folder) / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(regions))
