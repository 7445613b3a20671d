"""MS COCO 2014: the data set, whose tags and masks come from instance annotations, and COCO's regions.

First the data set and the reading of its annotation files, then the regions that these files hold. COCO
stores a region as a list of polygons or as run lengths. Polygons and plain run lengths need numpy alone;
compressed run lengths need the optional package pycocotools.
"""
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from ..errors import InputError, input_errors
from ..files import existing, nfc, read_json
from .base import Entry, Size, TagDataset, split_error
from .image_files import MOST_PIXELS, refuse_many_classes

COCO_SPLITS = ("train", "val")
CROWDS = ("background", "ignore", "class")  # what --crowds makes of crowd regions in masks
LISTS = {"categories": {"id", "name"},  # the lists of an annotation file and the fields of their items
         "images": {"id", "file_name", "height", "width"},
         "annotations": {"image_id", "category_id", "segmentation"}}
FIELD_TYPES = {"name": str, "file_name": str, "segmentation": list | dict}  # every other field is an int
Region = list[np.ndarray]  # the union of its parts: polygons [n, 2] (x, y), or run lengths [n]


class LabelledRegion(NamedTuple):
    """One annotation of an image: its class from 1, whether it is a crowd, its region."""
    label: int
    crowd: bool
    region: Region


class CocoDataset(TagDataset):
    """COCO 2014 below `root`: annotations/instances_{train,val}2014.json, {train,val}2014/ (or in images/).

    Classes are the file's categories in the order of their ids. Tags are the classes of all annotations of an
    image, of crowds too, as in CLIMS' release. `crowds`, one of CROWDS, says how masks are drawn, see
    `drawing_order`. Images without an annotation have no tag; they are left out and counted in `notes`.
    """

    def __init__(self, root: Path | str, split: str, skip_bad: bool = False, max_pixels: int = MOST_PIXELS,
                 crowds: str = "background"):
        root = Path(root)
        splits = coco_splits(root)
        if split not in COCO_SPLITS:
            raise split_error(split, splits, root)
        path = annotation_file(root, split)
        if split not in splits:
            raise InputError(f"{path}: no such file")
        folder = image_folder(root, split)
        content = read_annotations(path)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.classes = [nfc(category["name"]) for category in categories]
        refuse_many_classes(len(self.classes), path)
        twice = [name for name, times in Counter(self.classes).items() if times > 1]
        if twice:
            raise InputError(f"{path}: several categories are called {twice[0]!r}; give each its own name")
        self.category_ids = [category["id"] for category in categories]
        self.image_ids: dict[str, int] = {}
        self.regions: dict[str, list[LabelledRegion]] = {}  # image name -> its regions in drawing order
        labels = {number: label for label, number in enumerate(self.category_ids, 1)}
        by_image, problems = group_by_image(content, path)
        files = {image["id"]: image_path(folder, image["file_name"]) for image in content["images"]}
        times = Counter(nfc(file.stem) for file in files.values())
        entries = []
        for image in sorted(content["images"], key=lambda image: image["id"]):
            file = files[image["id"]]
            name = nfc(file.stem)
            where = f"{path} (image {image['id']})"
            size = (image["height"], image["width"])
            if times[name] > 1:  # results are saved by name
                problems.append(f"{where}: another image of the file is called {name} too")
                continue
            try:
                regions = read_regions(by_image[image["id"]], labels, size, where)
            except InputError as error:
                problems.append(str(error))
                continue
            if regions:
                self.image_ids[name] = image["id"]
                self.regions[name] = drawing_order(regions, crowds)
                tags = tuple(sorted({region.label - 1 for region in regions}))
                entries.append(Entry(name, file, tags, None, where, size))
        notes = []
        empty = sum(not items for items in by_image.values())
        if empty:
            notes = [f"{path}: {empty} of {len(by_image)} images have no annotation and are left out"]
        super().__init__(entries, problems, splits, skip_bad, max_pixels, notes=notes)
        self.has_masks = True
        self.masked = [True] * len(self)

    def load_mask(self, index: int) -> np.ndarray:
        """The mask drawn from the annotations, uint8 [H, W], or the file that `with_masks` gave."""
        if self.entries[index].mask is not None:
            return super().load_mask(index)
        return draw_mask(self.regions[self.names[index]], self.sizes[index])


def drawing_order(regions: list[LabelledRegion], crowds: str) -> list[LabelledRegion]:
    """The regions of an image in the order in which its mask is drawn, later ones on top, with their values.

    crowds: `background` or `ignore` draws crowds first, as 0 or 255, and then the others in the file's order.
    CLIMS' release scores crowds as background. `class` draws crowds as their class and the file's first
    region on top, as the masks are made that SemPLeS' release scores (its data/parse_coco.py).
    """
    if crowds == "class":
        return regions[::-1]
    value = 255 if crowds == "ignore" else 0
    below = [region._replace(label=value) for region in regions if region.crowd]
    return below + [region for region in regions if not region.crowd]


def annotation_file(root: Path, split: str) -> Path:
    """The annotation file of one of COCO_SPLITS."""
    return root / "annotations" / f"instances_{split}2014.json"


def coco_splits(root: Path) -> list[str]:
    """The splits that have an annotation file."""
    return [split for split in COCO_SPLITS if annotation_file(root, split).is_file()]


def image_folder(root: Path, split: str) -> Path:
    """The folder of a split's images; InputError if there is none."""
    for folder in (root / f"{split}2014", root / "images" / f"{split}2014"):
        if folder.is_dir():
            return folder
    raise InputError(f"--data-root {root}: has no folder {split}2014 or images/{split}2014")


def image_path(folder: Path, file_name: str) -> Path:
    """The file that an annotation file calls `file_name`, which may have a Windows path's backslashes."""
    path = existing(folder / file_name)
    return path if path.exists() else existing(folder / file_name.replace("\\", "/"))


def read_annotations(path: Path, lists: dict[str, set[str]] = LISTS) -> dict:
    """The content of an annotation file; InputError if it is damaged or lacks a list or field of `lists`."""
    content = read_json(path)
    for key, fields in lists.items():
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise InputError(f"{path}: no list {key!r}; expected COCO's instances_*.json")
        for number, item in enumerate(items):
            if not isinstance(item, dict) or not has_fields(item, fields):
                raise InputError(f"{path}: {key}[{number}] lacks one of {', '.join(sorted(fields))}, or one "
                                 "has a value of the wrong type")
    return content


def has_fields(item: dict, fields: set[str]) -> bool:
    """Whether an item of an annotation file has these fields, each with a value of its type."""
    return all(isinstance(item.get(field), FIELD_TYPES.get(field, int)) for field in fields)


def group_by_image(content: dict, path: Path) -> tuple[dict[int, list[tuple[int, dict]]], list[str]]:
    """(image id -> its (position in the file, annotation) pairs, one line for each of an unknown image)."""
    by_image: dict[int, list[tuple[int, dict]]] = {image["id"]: [] for image in content["images"]}
    problems = []
    for position, item in enumerate(content["annotations"]):
        if item["image_id"] in by_image:
            by_image[item["image_id"]].append((position, item))
        else:
            problems.append(f"{path}: annotations[{position}]: image {item['image_id']} is not among the "
                            "file's images")
    return by_image, problems


def read_regions(annotations: list[tuple[int, dict]], labels: dict[int, int], size: Size,
                 where: str) -> list[LabelledRegion]:
    """The regions of one image's (position, annotation) pairs; InputError names the first bad one.

    labels: category id -> class from 1. size: the image's (H, W).
    """
    regions = []
    for position, item in annotations:
        with input_errors(f"{where}: annotations[{position}]: ", TypeError, ValueError):
            if item["category_id"] not in labels:
                raise ValueError(f"category {item['category_id']} is not among the file's categories")
            region = parse_region(item["segmentation"], size)
        regions.append(LabelledRegion(labels[item["category_id"]], bool(item.get("iscrowd")), region))
    return regions


# The regions. Run lengths count the pixels of an image column by column: so many outside the region, then so
# many inside, and so on. They are stored as a list of numbers or as a compressed text.

OUTREACH = 4  # corners of a polygon may lie outside of the image, by up to this many of its long side
UPSCALED = 5  # COCO follows a polygon's outline on a grid 5 times finer than the pixels
# Characters "0" to "o" hold 6 bits each; bit 5 says that the number goes on, so the last one is below "P".
COMPRESSED = re.compile("[0-o]*[0-O]")


def decode_mask(segmentation: list | dict, size: Size) -> np.ndarray:
    """A stored region of an image (H, W) as bool [H, W], equal to pycocotools' pixel by pixel.

    Errors are those of `parse_region`.
    """
    return draw_region(parse_region(segmentation, size), size)


def encode_mask(mask: np.ndarray) -> dict[str, object]:
    """A bool mask [H, W] as plain run lengths {"size": [H, W], "counts": [...]}."""
    return {"size": list(mask.shape), "counts": run_lengths(mask).tolist()}


def compress_mask(mask: np.ndarray) -> dict[str, object]:
    """A bool mask [H, W] as compressed run lengths {"size": [H, W], "counts": text}, as in COCO's results.

    ModuleNotFoundError without pycocotools.
    """
    compressed = pycocotools_mask().encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": compressed["counts"].decode("ascii")}


def parse_region(segmentation: list | dict, size: Size) -> Region:
    """A region of an image (H, W) from its JSON value.

    segmentation: a list of polygons [x0, y0, x1, ...], a binary mask of H rows of W values (SAM's output_mode
    binary_mask), or run lengths {"size": [H, W], "counts": ...}, whose
    counts are a list or a compressed text. ValueError or TypeError: a value of another form.
    ModuleNotFoundError: a compressed text without pycocotools.
    """
    if isinstance(segmentation, list) and is_binary_mask(segmentation):
        mask = np.asarray(segmentation, bool)
        if mask.shape != tuple(size):
            raise ValueError(f"a binary mask is {list(mask.shape)}, the image is {list(size)}")
        return [run_lengths(mask)]
    if isinstance(segmentation, list):
        return [parse_polygon(polygon, size) for polygon in segmentation]
    if not isinstance(segmentation, dict):
        raise ValueError(f"a region is a list of polygons or run lengths, not {type(segmentation).__name__}")
    if list(segmentation.get("size", ())) != list(size):
        raise ValueError(f"run lengths are for size {segmentation.get('size')}, the image is {list(size)}")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        return [decompress_counts(counts, size)]
    return [parse_counts(counts, size)]


def is_binary_mask(rows: list) -> bool:
    """Whether a list is a mask and not a list of polygons: several rows of one length, all values 0 or 1.

    Polygons of such numbers would lie in the image's first pixel.
    """
    if len(rows) < 2 or not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        return False
    return all(value in (0, 1) for row in rows for value in row)


def parse_polygon(polygon: list, size: Size) -> np.ndarray:
    """The corners [n, 2] as x, y in pixels of one polygon [x0, y0, x1, ...] of an image (H, W).

    ValueError or TypeError: not a list of numbers, fewer than three points, or a point far outside the image.
    """
    flat = np.asarray(polygon, np.float64)
    if flat.ndim != 1 or len(flat) < 6 or len(flat) % 2 or not (np.abs(flat) <= OUTREACH * max(size)).all():
        raise ValueError("a polygon is a list of at least three points x, y in its image")
    return flat.reshape(-1, 2)


def parse_counts(counts: list, size: Size) -> np.ndarray:
    """Plain run lengths [n] of an image (H, W).

    ValueError: not a list of whole numbers of at least 0 that add up to the image's pixels.
    """
    runs = np.asarray(counts)
    pixels = size[0] * size[1]
    if runs.ndim != 1 or runs.dtype.kind != "i" or (runs < 0).any() or runs.sum() != pixels:
        raise ValueError(f"run lengths do not add up to the image's {pixels} pixels")
    return runs


def decompress_counts(text: str, size: Size) -> np.ndarray:
    """The run lengths [n] of an image (H, W) from COCO's compressed text.

    ValueError: a damaged text, or run lengths that do not add up to the image's pixels. ModuleNotFoundError:
    pycocotools is missing.
    """
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


def draw_mask(regions: Sequence[LabelledRegion], size: Size) -> np.ndarray:
    """The mask uint8 [H, W] of an image's regions; later ones are drawn on top."""
    mask = np.zeros(size, np.uint8)
    for label, _, region in regions:
        mask[draw_region(region, size)] = label
    return mask


def draw_region(region: Region, size: Size) -> np.ndarray:
    """A parsed region as bool [H, W]."""
    mask = np.zeros(size, bool)
    for part in region:
        is_polygon = part.ndim == 2
        runs = polygon_runs(part, size) if is_polygon else part
        mask |= fill_runs(runs, size)
    return mask


def fill_runs(runs: np.ndarray, size: Size) -> np.ndarray:
    """Run lengths [n] as bool [H, W].

    The run lengths 1, 2, 3 at size (2, 3) are one pixel outside, two inside and three outside:
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


def polygon_runs(corners: np.ndarray, size: Size) -> np.ndarray:
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
