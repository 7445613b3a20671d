"""COCO's two ways to store a region, polygons and run lengths, decoded to masks with numpy alone."""
import numpy as np

FAR = 4  # image sides that a polygon may reach out of its image
UPSCALED = 5  # COCO's polygon outlines are followed on a grid 5 times finer than the pixels
Region = np.ndarray | list[np.ndarray]  # run lengths [n], or the corners [n, 2] of polygons


def decode(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """A region as bool [H, W], equal to pycocotools' pixel by pixel; ValueError or TypeError for a bad one.

    It is a list of polygons [x0, y0, x1, ...] (their union), or run lengths {"size": [H, W], "counts": ...}.
    """
    return draw(parse(segmentation, size), size)


def parse(segmentation: list | dict, size: tuple[int, int]) -> Region:
    """A checked region of an image (H, W) as arrays; ValueError or TypeError for a bad one."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, np.float64) for polygon in segmentation]
        for flat in polygons:
            near = (np.abs(flat) <= FAR * max(size)).all()
            if flat.ndim != 1 or len(flat) < 6 or len(flat) % 2 or not near:
                raise ValueError("a polygon is a list of at least three points x, y in its image")
        return [flat.reshape(-1, 2) for flat in polygons]
    if not isinstance(segmentation, dict):
        raise ValueError(f"a region is a list of polygons or run lengths, not {type(segmentation).__name__}")
    counts, pixels = segmentation.get("counts"), size[0] * size[1]
    if list(segmentation.get("size", ())) != list(size):
        raise ValueError(f"run lengths are for size {segmentation.get('size')}, the image is {list(size)}")
    counts = parse_counts(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts)
    if counts.ndim != 1 or counts.dtype.kind != "i" or (counts < 0).any() or counts.sum() != pixels:
        raise ValueError(f"run lengths do not add up to the image's {pixels} pixels")
    return counts


def draw(region: Region, size: tuple[int, int]) -> np.ndarray:
    """A parsed region as bool [H, W]; run lengths alternate between 0 and 1 down the columns."""
    if isinstance(region, np.ndarray):
        return np.repeat(np.arange(len(region)) % 2 == 1, region).reshape(size[::-1]).T
    mask = np.zeros(size, bool)
    for corners in region:
        mask |= draw(_runs(corners, size), size)
    return mask


def encode(mask: np.ndarray) -> dict[str, object]:
    """A bool mask [H, W] as compressed run lengths {"size": [H, W], "counts": text}, which `decode` reads."""
    changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False))
    counts, text = np.diff(changes, prepend=0, append=mask.size), ""
    counts[3:] -= counts[1:-2].copy()
    for value in counts.tolist():
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != -(bits >> 4)  # what is left is more than the sign
            text += chr(48 + bits + 32 * more)
    return {"size": list(mask.shape), "counts": text}


def parse_counts(text: str | bytes) -> np.ndarray:
    """Run lengths from COCO's compressed string, int64.

    Each number is a series of 6-bit characters from "0" on, low bits first: 5 bits of value; bit 5 says that
    more follow; bit 4 of the last one is the sign. From the fourth on it is the difference to two before.
    """
    codes = np.frombuffer(text.encode("latin1") if isinstance(text, str) else text, np.uint8) - np.int64(48)
    strange = codes[(codes < 0) | (codes > 63)]
    if strange.size:
        raise ValueError(f"character {chr(strange[0] + 48)!r} in compressed run lengths")
    ends = np.flatnonzero(codes < 32)
    if codes.size == 0 or ends.size == 0 or ends[-1] < codes.size - 1:
        raise ValueError("compressed run lengths end inside a number")
    starts = np.append(0, ends[:-1] + 1)
    shift = 5 * (np.arange(codes.size) - np.repeat(starts, ends - starts + 1))
    counts = np.add.reduceat((codes & 31) << shift, starts)
    counts -= (codes[ends] >> 4) << (shift[ends] + 5)
    counts[1::2], counts[2::2] = counts[1::2].cumsum(), counts[2::2].cumsum()
    return counts


def _runs(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One polygon, corners [n, 2] as x, y in pixels, as run lengths.

    COCO's rule: the outline is walked in steps of a fifth of a pixel; wherever it crosses the middle line of
    a column, the pixels of that column from there on change between outside and inside.
    """
    height, width = size
    x, y = _outline((UPSCALED * corners + 0.5).astype(np.int64))
    crossing = np.flatnonzero(np.diff(x))
    left = np.minimum(x[crossing], x[crossing + 1])
    upper = np.minimum(y[crossing], y[crossing + 1])
    middle = UPSCALED // 2
    columns = left // UPSCALED
    counted = (left % UPSCALED == middle) & (columns >= 0) & (columns < width)
    rows = np.clip(-((middle - upper[counted]) // UPSCALED), 0, height)  # rounded up
    changes = np.sort(columns[counted] * height + rows)
    return np.diff(changes, prepend=0, append=width * height)


def _outline(corners: np.ndarray) -> np.ndarray:
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
