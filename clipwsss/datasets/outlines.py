"""Outlines of label maps' regions as polygons, from which COCO's rule draws exactly the same pixels."""
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from .image_files import IGNORE

# The headings of an edge, in the order of right turns; y points down. The region lies on an edge's right.
RIGHT, DOWN, LEFT, UP = range(4)
Corner = tuple[int, int]  # (x, y) of a corner of pixels


def label_regions(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray, tuple[slice, slice]]]:
    """(label, bool [h, w], the place of this piece in the label map) of each connected region but background.

    labels: uint8 [H, W]. Pixels of 255 (ignored) belong to no region. Pixels are connected by their sides.
    """
    for label in np.unique(labels).tolist():
        if label in (0, IGNORE):
            continue
        numbers, _ = ndimage.label(labels == label)
        for number, place in enumerate(ndimage.find_objects(numbers), 1):
            yield label, numbers[place] == number, place


def outline_polygon(region: np.ndarray) -> np.ndarray:
    """One polygon, int [n, 2] as x, y of pixels' corners, around a connected region bool [h, w].

    A hole becomes part of the polygon by a cut, which is walked there and back, so that drawing it changes no
    pixel.
    """
    outer, *holes = sorted(closed_outlines(region), key=min)  # no corner is left of the outer outline's
    polygon = np.array(outer)
    for hole in holes:
        start = hole.index(min(hole))
        closed = [*hole[start:], *hole[:start + 1]]  # begins and ends at its leftmost corner
        nearest = int(np.abs(polygon - closed[0]).sum(1).argmin())
        polygon = np.concatenate([polygon[:nearest + 1], closed, polygon[nearest:]])
    return polygon


def closed_outlines(region: np.ndarray) -> list[list[Corner]]:
    """The corners of each closed outline of a region bool [h, w]: clockwise outside, the other way in holes.

    Where two pixels touch at a corner alone, the outline turns right and so stays at its own pixel.
    """
    end_of = dict(edges_of(region))
    waiting = set(end_of)
    outlines = []
    for corner, heading in end_of:
        outline = []
        while (corner, heading) in waiting:
            waiting.remove((corner, heading))
            outline.append(corner)
            corner = end_of[corner, heading]
            heading = (heading + 1) % 4
            if (corner, heading) not in end_of:
                heading = (heading + 2) % 4
        if outline:
            outlines.append(outline)
    return outlines


def edges_of(region: np.ndarray) -> Iterator[tuple[tuple[Corner, int], Corner]]:
    """((start, heading), end) of every straight edge between a region bool [h, w] and its surroundings."""
    inside = np.pad(region, 1).astype(np.int8)
    enters_downwards = np.diff(inside, axis=0)[:, 1:-1]  # 1 on a region's upper edges, -1 on lower ones
    enters_rightwards = np.diff(inside, axis=1)[1:-1].T  # 1 on left edges, -1 on right ones
    for line, first, last in runs_of(enters_downwards == 1):
        yield ((first, line), RIGHT), (last, line)
    for line, first, last in runs_of(enters_downwards == -1):
        yield ((last, line), LEFT), (first, line)
    for line, first, last in runs_of(enters_rightwards == 1):
        yield ((line, last), UP), (line, first)
    for line, first, last in runs_of(enters_rightwards == -1):
        yield ((line, first), DOWN), (line, last)


def runs_of(marked: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(row, first column, column after the last) of each run of marked cells in the rows of bool [n, m]."""
    padded = np.pad(marked, ((0, 0), (1, 1)))
    changes = padded[:, 1:] != padded[:, :-1]  # in each row, runs begin and end in turn
    lines, columns = np.divmod(np.flatnonzero(changes), changes.shape[1])
    return zip(lines[::2].tolist(), columns[::2].tolist(), columns[1::2].tolist())
