"""MS COCO 2014: tags and masks from its instance annotations."""
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError, input_errors
from .base import MOST_PIXELS, Entry, Size, TagDataset, split_error
from .coco_masks import Region, draw, parse

SPLITS = ("train", "val")
CROWDS = {"background": 0, "ignore": 255}  # what --crowds makes of crowd regions -> their value in masks
LISTS = {"categories": {"id", "name"},  # the lists of an annotation file and the fields of their items
         "images": {"id", "file_name", "height", "width"},
         "annotations": {"image_id", "category_id", "segmentation"}}
FIELD_TYPES = {"name": str, "file_name": str, "segmentation": list | dict}  # every other field is an int


class LabelledRegion(NamedTuple):
    """One annotation of an image: its class from 1, whether it is a crowd, its region."""
    label: int
    crowd: bool
    region: Region


class CocoDataset(TagDataset):
    """COCO 2014 below `root`: annotations/instances_{train,val}2014.json, {train,val}2014/ (or in images/).

    Classes are the file's categories in the order of their ids. Tags are the classes of all annotations of an
    image, of crowds too, as in CLIMS' release. In masks, crowds are drawn first, as `crowds` says (one of
    CROWDS; CLIMS scores them as background), then the other annotations in the file's order, later ones on
    top. Images without an annotation have no tag; they are left out and counted in `notes`.
    """

    def __init__(self, root: Path | str, split: str, skip_bad: bool = False, max_pixels: int = MOST_PIXELS,
                 crowds: str = "background"):
        root = Path(root)
        files = {name: root / "annotations" / f"instances_{name}2014.json" for name in SPLITS}
        splits = [name for name in SPLITS if files[name].is_file()]
        if split not in SPLITS:
            raise split_error(split, splits, root)
        path = files[split]
        if split not in splits:
            raise InputError(f"{path}: no such file")
        folder = image_folder(root, split)
        content = read_annotations(path)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.classes = [category["name"] for category in categories]
        self.category_ids = [category["id"] for category in categories]
        self.image_ids = {Path(image["file_name"]).stem: image["id"] for image in content["images"]}
        self.crowd_label = CROWDS[crowds]
        self.regions: dict[str, list[LabelledRegion]] = {}  # image name -> its regions in drawing order
        labels = {number: label for label, number in enumerate(self.category_ids, 1)}
        by_image, problems = group_by_image(content, path)
        entries = []
        for image in sorted(content["images"], key=lambda image: image["id"]):
            name = Path(image["file_name"]).stem
            where = f"{path} (image {image['id']})"
            size = (image["height"], image["width"])
            try:
                regions = read_regions(by_image[image["id"]], labels, size, where)
            except InputError as error:
                problems.append(str(error))
                continue
            if regions:
                self.regions[name] = sorted(regions, key=lambda region: not region.crowd)
                tags = tuple(sorted({region.label - 1 for region in regions}))
                entries.append(Entry(name, folder / image["file_name"], tags, None, where, size))
        notes = []
        empty = sum(not items for items in by_image.values())
        if empty:
            notes = [f"{path}: {empty} of {len(by_image)} images have no annotation and are left out"]
        super().__init__(entries, problems, splits, skip_bad, max_pixels, notes=notes)
        self.has_masks = True

    def has_mask(self, index: int) -> bool:
        """Whether an image has a mask: here every image has one."""
        return True

    def load_mask(self, index: int) -> np.ndarray:
        """The mask drawn from the annotations, uint8 [H, W], or the file that `with_masks` gave."""
        if self.entries[index].mask is not None:
            return super().load_mask(index)
        size = self.image_size(index)
        mask = np.zeros(size, np.uint8)
        for label, crowd, region in self.regions[self.names[index]]:
            mask[draw(region, size)] = self.crowd_label if crowd else label
        return mask


def image_folder(root: Path, split: str) -> Path:
    """The folder of a split's images; InputError if there is none."""
    for folder in (root / f"{split}2014", root / "images" / f"{split}2014"):
        if folder.is_dir():
            return folder
    raise InputError(f"--data-root {root}: neither {split}2014 nor images/{split}2014 is there")


def read_annotations(path: Path, lists: dict[str, set[str]] = LISTS) -> dict:
    """The content of an annotation file; InputError if it is damaged or lacks a list or field of `lists`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable annotation file ({error})") from error
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
            region = parse(item["segmentation"], size)
        regions.append(LabelledRegion(labels[item["category_id"]], bool(item.get("iscrowd")), region))
    return regions
