"""COCO's two ways to store a region, polygons and run lengths, decoded to masks with numpy alone."""
import numpy as np

UPSCALED = 5  # COCO's polygon outlines are followed on a grid 5 times finer than the pixels


def decode(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """A region as bool [H, W], equal to pycocotools' pixel by pixel; ValueError for what `check` refuses.

    It is a list of polygons [x0, y0, x1, ...] (their union), or run lengths {"size": [H, W], "counts": ...}.
    """
    if isinstance(segmentation, dict):
        return decode_runs(_counts(segmentation, size), size)
    mask = np.zeros(size, bool)
    for polygon in segmentation:
        mask |= fill_polygon(polygon, size)
    return mask


def check(segmentation: list | dict, size: tuple[int, int]) -> None:
    """ValueError or TypeError for a region that `decode` would refuse, without drawing it."""
    if isinstance(segmentation, dict):
        _counts(segmentation, size)
    elif isinstance(segmentation, list):
        for polygon in segmentation:
            _corners(polygon)
    else:
        raise ValueError(f"a region is a list of polygons or run lengths, not {type(segmentation).__name__}")


def parse_counts(text: str | bytes) -> np.ndarray:
    """Run lengths from COCO's compressed string, int64.

    Each number is a series of 6-bit characters from "0" on, low bits first: 5 bits of value; bit 5 says that
    more follow; bit 4 of the last one is the sign. From the fourth number on it is the difference to the
    number two before.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text.encode("latin1") if isinstance(text, str) else text:
        code -= 48
        if not 0 <= code < 64:
            raise ValueError(f"character {chr(code + 48)!r} in compressed run lengths")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("compressed run lengths end inside a number")
    return np.array(counts, np.int64)


def decode_runs(counts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Alternate runs of 0 and 1 down the columns, which add up to the image -> bool [H, W]."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T


def fill_polygon(polygon: list[float] | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The inside of one polygon [x0, y0, x1, y1, ...] in pixels as bool [H, W].

    COCO's rule: the outline is walked in steps of a fifth of a pixel; wherever it crosses the middle line of
    a column, the pixels of that column from there on change between outside and inside.
    """
    height, width = size
    x, y = _outline((UPSCALED * _corners(polygon) + 0.5).astype(np.int64))
    crossing = np.flatnonzero(np.diff(x))
    left = np.minimum(x[crossing], x[crossing + 1])
    upper = np.minimum(y[crossing], y[crossing + 1])
    middle = UPSCALED // 2
    columns = left // UPSCALED
    counted = (left % UPSCALED == middle) & (columns >= 0) & (columns < width)
    rows = np.clip(-((middle - upper[counted]) // UPSCALED), 0, height)  # rounded up
    changes = columns[counted] * height + rows
    flat = np.zeros(width * height, bool)
    if len(changes):
        first, last = changes.min(), min(changes.max(), width * height)
        counts = np.bincount(changes - first, minlength=last - first + 1)
        flat[first:last] = np.cumsum(counts)[:last - first] % 2 == 1
    return flat.reshape(width, height).T


def _counts(segmentation: dict, size: tuple[int, int]) -> np.ndarray:
    """The run lengths of a region, checked against the image's size."""
    counts = segmentation.get("counts")
    if list(segmentation.get("size", ())) != list(size):
        raise ValueError(f"run lengths are for size {segmentation.get('size')}, the image is {list(size)}")
    counts = parse_counts(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts)
    pixels = size[0] * size[1]
    if counts.ndim != 1 or counts.dtype.kind != "i" or (counts < 0).any() or counts.sum() != pixels:
        raise ValueError(f"run lengths do not add up to the image's {pixels} pixels")
    return counts


def _corners(polygon: list[float] | np.ndarray) -> np.ndarray:
    corners = np.asarray(polygon, np.float64)
    if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
        raise ValueError("a polygon is a list of at least three points x, y")
    return corners.reshape(-1, 2)


def _outline(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every grid point on the closed outline, in order; a step is along the longer axis of its edge."""
    begin, end = corners, np.roll(corners, -1, axis=0)
    reach = np.abs(end - begin)
    along_x = reach[:, 0] >= reach[:, 1]
    length = reach.max(axis=1)
    # An edge is sampled from the end that is lower on its longer axis, whichever way it is walked.
    main = np.where(along_x, 0, 1)
    edges = np.arange(len(corners))
    backwards = begin[edges, main] > end[edges, main]
    low, high = np.where(backwards[:, None], end, begin), np.where(backwards[:, None], begin, end)
    slope = (high - low)[edges, 1 - main] / np.maximum(length, 1)
    edge = np.repeat(edges, length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    step = np.where(backwards[edge], length[edge] - step, step)
    longer = low[edge, main[edge]] + step
    shorter = (low[edge, 1 - main[edge]] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(along_x[edge], longer, shorter), np.where(along_x[edge], shorter, longer)
