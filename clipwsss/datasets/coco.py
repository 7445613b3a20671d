"""MS COCO 2014: tags and masks from its instance annotations."""
import json
from pathlib import Path

import numpy as np

from ..errors import InputError, input_errors
from .base import Entry, Size, TagDataset, split_error
from .coco_masks import Region, draw, parse
from .reading import Checked

SPLITS = ("train", "val")
LabelledRegion = tuple[int, bool, Region]  # class from 1, crowd
LISTS = {"categories": {"id", "name"}, "images": {"id", "file_name", "height", "width"},
         "annotations": {"image_id", "category_id", "segmentation"}}
FIELD_TYPES = {"name": str, "file_name": str, "segmentation": list | dict}  # of fields; others are whole numbers


class CocoDataset(TagDataset):
    """COCO 2014 below `root`: annotations/instances_{train,val}2014.json, {train,val}2014/ (or in images/).

    Classes are the file's categories by id. Tags are all annotations of an image, crowds too, as in CLIMS'
    release. Masks: crowds first as `crowd_label` (one of CROWDS; background as CLIMS scores them),
    then the instances in the file's order, later ones on top. Images without any annotation have no tag; they
    are left out and counted in `notes`.
    """
    crowd_label = 0

    def __init__(self, root: Path | str, split: str, skip_bad: bool = False, checked: Checked | None = None):
        root = Path(root)
        files = {name: root / "annotations" / f"instances_{name}2014.json" for name in SPLITS}
        splits = [name for name in SPLITS if files[name].is_file()]
        if split not in SPLITS:
            raise split_error(split, splits, root)
        if split not in splits:
            raise InputError(f"{files[split]}: no such file")
        path, places = files[split], (root / f"{split}2014", root / "images" / f"{split}2014")
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise InputError(f"--data-root {root}: neither {split}2014 nor images/{split}2014 is there")
        content = read_annotations(path)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.classes = [category["name"] for category in categories]
        self.category_ids = [category["id"] for category in categories]
        self.image_ids = {Path(image["file_name"]).stem: image["id"] for image in content["images"]}
        numbers = {category["id"]: number for number, category in enumerate(categories, 1)}
        owned: dict[int, list[tuple[int, dict]]] = {image["id"]: [] for image in content["images"]}
        problems, entries = [], []
        for index, item in enumerate(content["annotations"]):
            if item["image_id"] in owned:
                owned[item["image_id"]].append((index, item))
            else:
                unknown = f"image {item['image_id']} is not among the file's images"
                problems.append(f"{path}: annotations[{index}]: {unknown}")
        self._drawn: dict[str, tuple[Size, list[LabelledRegion]]] = {}  # with the size that the file states
        for image in sorted(content["images"], key=lambda image: image["id"]):
            name, where = Path(image["file_name"]).stem, f"{path} (image {image['id']})"
            size = image["height"], image["width"]
            try:
                drawn = read_regions(owned[image["id"]], numbers, size, where)
            except InputError as error:
                problems.append(str(error))
                continue
            if drawn:
                self._drawn[name] = size, sorted(drawn, key=lambda region: not region[1])
                tags = tuple(sorted({number - 1 for number, _, _ in drawn}))
                entries.append(Entry(name, folder / image["file_name"], tags, None, where))
        empty = sum(not items for items in owned.values())
        note = f"{path}: {empty} of {len(owned)} images have no annotation and are left out"
        super().__init__(entries, problems, splits, skip_bad, notes=[note] if empty else [], checked=checked)
        self.has_masks = True

    def has_mask(self, index: int) -> bool:
        return True

    def load_mask(self, index: int) -> np.ndarray:
        """The mask drawn from the annotations, uint8 [H, W] (or the file of `with_masks`)."""
        if self.entries[index].mask is not None:
            return super().load_mask(index)
        size, regions = self._drawn[self.names[index]]
        mask = np.zeros(size, np.uint8)
        for number, crowd, region in regions:
            mask[draw(region, size)] = self.crowd_label if crowd else number
        return mask

    def _check_mask(self, entry: Entry) -> None:
        height, width = self._drawn[entry.name][0]
        if entry.size != (height, width):
            raise InputError(f"{entry.image}: {entry.size[0]} x {entry.size[1]} (H x W), but {entry.where} "
                             f"says {height} x {width}")
        super()._check_mask(entry)


def read_annotations(path: Path, lists: dict[str, set[str]] = LISTS) -> dict:
    """The annotation file's content; InputError if it is damaged or lacks one of its `lists`' fields."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable annotation file ({error})") from error
    for key, fields in lists.items():
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise InputError(f"{path}: no list {key!r}; expected COCO's instances_*.json")
        for number, item in enumerate(items):
            if not isinstance(item, dict) or not all(isinstance(item.get(field), FIELD_TYPES.get(field, int))
                                                     for field in fields):
                raise InputError(f"{path}: {key}[{number}] lacks one of {', '.join(sorted(fields))}, or has "
                                 "something else in its place")
    return content


def read_regions(items: list[tuple[int, dict]], numbers: dict[int, int], size: Size,
                 where: str) -> list[LabelledRegion]:
    """The regions of an image's (position, annotation) pairs; InputError names the first bad one."""
    drawn = []
    for index, item in items:
        with input_errors(f"{where}: annotations[{index}]: ", TypeError, ValueError):
            if item["category_id"] not in numbers:
                raise ValueError(f"category {item['category_id']} is not among the file's categories")
            region = parse(item["segmentation"], size)
        drawn.append((numbers[item["category_id"]], bool(item.get("iscrowd")), region))
    return drawn
