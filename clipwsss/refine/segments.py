"""Class-agnostic segments (Segment Anything and the like): their files, and label maps made by them.

With the package transformers (it downloads SAM) they are written by

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

from ..datasets.coco_masks import decode, encode
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


class Segment(NamedTuple):
    """A class-agnostic region bool [H, W]; level: of SAM's three answers to a point, 0 a part .. 2 all."""
    mask: np.ndarray
    level: int = 0


def paint(maps: np.ndarray, segments: Sequence[Segment], power: float = 0.6) -> np.ndarray:
    """Labels uint8 [H, W] of segments, each the background's (0) or that of one map: 1..k.

    maps float32 [k, H, W]. A segment scores the mean of each map, negative values cut, scaled over the
    image's segments by (x - min) / (max - min); the background scores (1 - the largest)^power. Segments are
    painted by rising level, then rising score of their label; what none covers is background. Source:
    FMA-WSSS (arXiv 2312.03585, release: gather_norm_bg_argmax).
    """
    painted = np.zeros(maps.shape[1:], np.uint8)
    segments = [segment for segment in segments if segment.mask.any()]
    if not segments:
        return painted
    rectified = np.maximum(maps, 0).reshape(len(maps), -1)
    scores = np.stack([rectified[:, segment.mask.ravel()].mean(1) for segment in segments], 1)
    low, high = scores.min(1, keepdims=True), scores.max(1, keepdims=True)
    scores = (scores - low) / (high - low + 1e-7)
    scores = np.concatenate([(1 - scores.max(0, keepdims=True)) ** power, scores])
    labels, sure = scores.argmax(0), scores.max(0)
    for index in sorted(range(len(segments)), key=lambda index: (segments[index].level, sure[index])):
        painted[segments[index].mask] = labels[index]
    return painted


def read_segments(folder: Path | str, name: str, size: tuple[int, int]) -> list[Segment]:
    """The segments of one image, from FOLDER/NAME.png or FOLDER/NAME.json.

    PNG: a label map of 8 or 16 bits, every value but 0 is a segment. JSON: a list of regions (SA-1B: under
    "annotations"), each with COCO's "segmentation" (run lengths or polygons) and perhaps FMA-WSSS' "level";
    without levels a segment's is the number of others that lie in it. InputError names a bad file.
    """
    paths = [path for path in (Path(folder) / f"{name}.png", Path(folder) / f"{name}.json") if path.is_file()]
    if len(paths) != 1:
        problem = "both are there, keep one" if paths else "no such file of segments"
        raise InputError(f"{Path(folder) / name}.png (or .json): {problem}")
    path, number = paths[0], 0
    try:
        if path.suffix == ".png":
            with Image.open(path) as file:
                labels = np.array(file)
            if labels.ndim != 2:
                raise ValueError(f"a map of segments has one channel, this is {file.mode}")
            if labels.shape != tuple(size):
                raise ValueError(f"it is {list(labels.shape)}, its image {list(size)} (H, W)")
            return [Segment(labels == value) for value in np.unique(labels) if value != 0]
        regions, segments = json.loads(path.read_text()), []
        regions = regions["annotations"] if isinstance(regions, dict) else regions
        for number, region in enumerate(regions, 1):
            mask = decode(region["segmentation"], tuple(size))
            segments.append(Segment(mask, int(region.get("level", -1))))
        return segments if all(segment.level >= 0 for segment in segments) else nested(segments)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError) as error:
        region = f"region {number}: " if number else ""
        raise InputError(f"{path}: no segments of this image ({region}{error})") from error


def nested(segments: Sequence[Segment], share: float = 0.9) -> list[Segment]:
    """The segments with levels: how many others have at least `share` of their pixels in them."""
    flat = np.stack([segment.mask.ravel() for segment in segments]).astype(np.float32)
    common, sizes = flat @ flat.T, flat.sum(1)
    inside = (common >= share * sizes) & (sizes[:, None] > sizes)
    return [segment._replace(level=int(count)) for segment, count in zip(segments, inside.sum(1))]


def write_segments(folder: Path | str, name: str, segments: Iterable[np.ndarray]) -> None:
    """Write bool [H, W] masks, which may overlap, as FOLDER/NAME.json in SAM's form (COCO's run lengths)."""
    regions = [{"segmentation": encode(np.asarray(segment, bool))} for segment in segments]
    with atomic_path(Path(folder) / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(regions))
