"""MS COCO 2014: tags and masks from its instance annotations."""
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import InputError
from .base import IGNORE, Entry, TagDataset, Transform, split_error
from .coco_masks import check, decode

SPLITS = ("train", "val")
Region = tuple[int, bool, list | dict]  # class from 1, crowd, segmentation


class CocoDataset(TagDataset):
    """COCO 2014 below `root`: annotations/instances_{train,val}2014.json and {train,val}2014/ (or images/ around them).

    Classes are the file's categories in the order of their ids (80, contiguous). Tags are all annotations of an image,
    crowds among them, as in the CLIMS release. Masks are drawn from the annotations: crowds first as 255, then the
    instances in the file's order, later ones on top, as CLIMS draws them (which leaves crowds background).
    Images without any annotation have no tag; they are left out and counted in `notes`.
    """

    def __init__(self, root: Path | str, split: str, transform: Transform | None = None, skip_bad: bool = False):
        root = Path(root)
        splits = [name for name in SPLITS if _annotations(root, name).is_file()]
        if split not in splits:
            if split in SPLITS:
                raise InputError(f"{_annotations(root, split)}: no such file")
            raise split_error(split, splits, root)
        path, images = _annotations(root, split), image_folder(root, split)
        content = read_annotations(path)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.classes = [category["name"] for category in categories]
        numbers = {category["id"]: number for number, category in enumerate(categories, 1)}
        regions: dict[int, list[Region]] = {image["id"]: [] for image in content["images"]}
        problems = list(_collect(content["annotations"], numbers, regions, path))
        self._regions: dict[str, list[Region]] = {}
        self._stated: dict[str, tuple[int, int]] = {}
        entries = []
        for image in sorted(content["images"], key=lambda image: image["id"]):
            own = regions[image["id"]]
            if own:
                name = Path(image["file_name"]).stem
                self._regions[name], self._stated[name] = own, (image["height"], image["width"])
                tags = tuple(sorted({number - 1 for number, _, _ in own}))
                entries.append(Entry(name, images / image["file_name"], tags, None, f"{path} (image {image['id']})"))
        left_out = len(regions) - len(entries)
        notes = [f"{path}: {left_out} of {len(regions)} images have no annotation and are left out"] if left_out else []
        super().__init__(entries, problems, splits, transform, skip_bad, notes=notes)
        self.has_masks = True

    def load_mask(self, index: int) -> np.ndarray:
        """The mask drawn from the annotations, uint8 [H, W] (or the file of `with_masks`)."""
        if self.entries[index].mask is not None:
            return super().load_mask(index)
        name = self.names[index]
        mask = np.zeros(self._stated[name], np.uint8)
        for number, crowd, segmentation in sorted(self._regions[name], key=lambda region: not region[1]):
            mask[decode(segmentation, mask.shape)] = IGNORE if crowd else number
        return mask

    def _mask_problem(self, entry: Entry, size: tuple[int, int]) -> str | None:
        if entry.mask is not None:
            return super()._mask_problem(entry, size)
        stated = self._stated[entry.name]
        if stated != size:
            return f"{entry.image}: {size[0]} x {size[1]} (H x W), {entry.where} says {stated[0]} x {stated[1]}"
        for _, _, segmentation in self._regions[entry.name]:
            try:
                check(segmentation, size)
            except (TypeError, ValueError) as error:
                return f"{entry.where}: {error}"
        return None


def image_folder(root: Path, split: str) -> Path:
    """The folder of a split's images; InputError where there is none."""
    for folder in (root / f"{split}2014", root / "images" / f"{split}2014"):
        if folder.is_dir():
            return folder
    raise InputError(f"--data-root {root}: neither {split}2014 nor images/{split}2014 is there")


def read_annotations(path: Path) -> dict:
    """The annotation file's content; InputError if it is damaged or lacks one of its lists."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable annotation file ({error})") from error
    for key, fields in (("categories", ("id", "name")), ("images", ("id", "file_name", "height", "width")),
                        ("annotations", ("image_id", "category_id", "segmentation"))):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise InputError(f"{path}: no list {key!r}; expected COCO's instances_*.json")
        for number, item in enumerate(items):
            missing = [field for field in fields if field not in item]
            if missing:
                raise InputError(f"{path}: {key}[{number}] has no {missing[0]!r}")
    return content


def _annotations(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}2014.json"


def _collect(annotations: list[dict], numbers: dict[int, int], regions: dict[int, list[Region]],
             path: Path) -> Iterator[str]:
    """Sort annotations by image into `regions`; yields what is wrong with any. Polygons become arrays, 4x smaller."""
    for index, item in enumerate(annotations):
        where, segmentation = f"{path}: annotations[{index}]", item["segmentation"]
        if item["category_id"] not in numbers:
            yield f"{where}: category {item['category_id']} is not among the file's categories"
        elif item["image_id"] not in regions:
            yield f"{where}: image {item['image_id']} is not among the file's images"
        else:
            try:
                if isinstance(segmentation, list):
                    segmentation = [np.asarray(polygon, np.float64) for polygon in segmentation]
                regions[item["image_id"]].append((numbers[item["category_id"]], bool(item.get("iscrowd")), segmentation))
            except (TypeError, ValueError):
                yield f"{where}: a polygon is not a list of numbers"
