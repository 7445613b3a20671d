"""COCO's two ways to store a region, polygons and run lengths, as masks.

Polygons and plain run lengths need numpy alone, compressed run lengths the optional package pycocotools.
"""
import re
from types import ModuleType

import numpy as np

REACH = 4  # a polygon may reach this many image sides out of its image
UPSCALED = 5  # COCO follows a polygon's outline on a grid 5 times finer than the pixels
# Characters "0" to "o" hold 6 bits each; bit 5 says that the number goes on, so the last one is below "P".
COMPRESSED = re.compile("[0-o]*[0-O]")
Region = list[np.ndarray]  # the union of its parts: polygons [n, 2] (x, y), or run lengths [n]


def decode(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """A region as bool [H, W], equal to pycocotools' pixel by pixel; errors as for `parse`."""
    return draw(parse(segmentation, size), size)


def encode(mask: np.ndarray) -> dict[str, object]:
    """A bool mask [H, W] as plain run lengths {"size": [H, W], "counts": [...]}, which `decode` reads."""
    return {"size": list(mask.shape), "counts": run_lengths(mask).tolist()}


def encode_compressed(mask: np.ndarray) -> dict[str, object]:
    """A bool mask [H, W] as compressed run lengths {"size": [H, W], "counts": text}, as COCO's results are.

    ModuleNotFoundError without pycocotools.
    """
    compressed = pycocotools_mask().encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": compressed["counts"].decode("ascii")}


def parse(segmentation: list | dict, size: tuple[int, int]) -> Region:
    """A region of an image (H, W), from COCO's JSON; ValueError or TypeError for a bad one.

    It is a list of polygons [x0, y0, x1, ...], or run lengths {"size": [H, W], "counts": ...}, whose counts
    are a list or a compressed text. ModuleNotFoundError for a text without pycocotools.
    """
    if isinstance(segmentation, list):
        return [parse_polygon(polygon, size) for polygon in segmentation]
    if not isinstance(segmentation, dict):
        raise ValueError(f"a region is a list of polygons or run lengths, not {type(segmentation).__name__}")
    if list(segmentation.get("size", ())) != list(size):
        raise ValueError(f"run lengths are for size {segmentation.get('size')}, the image is {list(size)}")
    counts = segmentation.get("counts")
    return [decompress(counts, size) if isinstance(counts, str) else parse_counts(counts, size)]


def parse_polygon(polygon: list, size: tuple[int, int]) -> np.ndarray:
    """The corners [n, 2] as x, y in pixels of one polygon [x0, y0, x1, ...] of an image (H, W)."""
    flat = np.asarray(polygon, np.float64)
    if flat.ndim != 1 or len(flat) < 6 or len(flat) % 2 or not (np.abs(flat) <= REACH * max(size)).all():
        raise ValueError("a polygon is a list of at least three points x, y in its image")
    return flat.reshape(-1, 2)


def parse_counts(counts: list, size: tuple[int, int]) -> np.ndarray:
    """Plain run lengths [n] of an image (H, W)."""
    runs = np.asarray(counts)
    pixels = size[0] * size[1]
    if runs.ndim != 1 or runs.dtype.kind != "i" or (runs < 0).any() or runs.sum() != pixels:
        raise ValueError(f"run lengths do not add up to the image's {pixels} pixels")
    return runs


def decompress(text: str, size: tuple[int, int]) -> np.ndarray:
    """The run lengths [n] of an image (H, W) from COCO's compressed text."""
    coco = pycocotools_mask()
    if not COMPRESSED.fullmatch(text):
        raise ValueError("compressed run lengths end inside a number or have a wrong character")
    mask = coco.decode({"size": list(size), "counts": text})
    # Where the runs end too early pycocotools leaves the other pixels undefined: they encode differently.
    if coco.encode(mask)["counts"] != text.encode("ascii"):
        raise ValueError(f"run lengths do not add up to the image's {size[0] * size[1]} pixels")
    return run_lengths(mask)


def pycocotools_mask() -> ModuleType:
    """The module pycocotools.mask; ModuleNotFoundError says how to install it."""
    try:
        from pycocotools import mask
    except ModuleNotFoundError:
        raise ModuleNotFoundError("COCO's compressed run lengths need: pip install pycocotools") from None
    return mask


def draw(region: Region, size: tuple[int, int]) -> np.ndarray:
    """A parsed region as bool [H, W]."""
    mask = np.zeros(size, bool)
    for part in region:
        is_polygon = part.ndim == 2
        mask |= fill_runs(polygon_runs(part, size) if is_polygon else part, size)
    return mask


def fill_runs(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Run lengths [n] as bool [H, W]: they alternate between outside and inside, column by column.

    [1, 2, 3] at size (2, 3) is one pixel outside, two inside, three outside:
        . x .
        x . .
    """
    inside = np.arange(len(runs)) % 2 == 1
    height, width = size
    return np.repeat(inside, runs).reshape(width, height).T


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """The run lengths [n] of a mask [H, W]: the inverse of `fill_runs`."""
    changes = np.flatnonzero(np.diff(mask.T.ravel().astype(bool), prepend=False))
    return np.diff(changes, prepend=0, append=mask.size)


def polygon_runs(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One polygon, corners [n, 2] as x, y in pixels, as run lengths.

    COCO's rule: the outline is walked in steps of a fifth of a pixel; wherever it crosses the middle line of
    a column, the pixels of that column from there on change between outside and inside.
    """
    height, width = size
    x, y = outline((UPSCALED * corners + 0.5).astype(np.int64))
    crossing = np.flatnonzero(np.diff(x))
    left = np.minimum(x[crossing], x[crossing + 1])
    upper = np.minimum(y[crossing], y[crossing + 1])
    middle = UPSCALED // 2
    columns = left // UPSCALED
    counted = (left % UPSCALED == middle) & (columns >= 0) & (columns < width)
    rows = np.clip(-((middle - upper[counted]) // UPSCALED), 0, height)  # rounded up
    changes = np.sort(columns[counted] * height + rows)
    return np.diff(changes, prepend=0, append=width * height)


def outline(corners: np.ndarray) -> np.ndarray:
    """x and y [2, points] of the grid points on the closed outline, in steps along an edge's longer axis."""
    edges = np.stack([corners, np.roll(corners, -1, axis=0)])
    reach = np.abs(edges[1] - edges[0])
    steep = reach[:, 1] > reach[:, 0]
    begin, end = np.where(steep[:, None], edges[..., ::-1], edges)  # the longer axis first
    # An edge is sampled from the end that is lower on its longer axis, whichever way it is walked.
    backwards = begin[:, 0] > end[:, 0]
    low, high = np.where(backwards[:, None], [end, begin], [begin, end])
    length = high[:, 0] - low[:, 0]
    slope = (high - low)[:, 1] / np.maximum(length, 1)
    edge = np.repeat(np.arange(len(corners)), length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    step = np.where(backwards[edge], length[edge] - step, step)
    shorter = (low[edge, 1] + slope[edge] * step + 0.5).astype(np.int64)
    points = np.stack([low[edge, 0] + step, shorter])
    return np.where(steep[edge], points[::-1], points)
