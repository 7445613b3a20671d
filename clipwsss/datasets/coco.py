"""MS COCO 2014: tags and masks from its instance annotations."""
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..transforms import IGNORE
from .base import Entry, Size, TagDataset, Transform, split_error
from .coco_masks import check, decode

SPLITS = ("train", "val")
Region = tuple[int, bool, list | dict]  # class from 1, crowd, segmentation


class CocoDataset(TagDataset):
    """COCO 2014 below `root`: annotations/instances_{train,val}2014.json, {train,val}2014/ (or in images/).

    Classes are the file's categories in the order of their ids (80, contiguous). Tags are all annotations of
    an image, crowds among them, as in the CLIMS release. Masks are drawn from the annotations: crowds first
    as 255, then the instances in the file's order, later ones on top, as CLIMS draws them (which leaves
    crowds background). Images without any annotation have no tag; they are left out and counted in `notes`.
    """

    def __init__(self, root: Path | str, split: str, transform: Transform | None = None,
                 skip_bad: bool = False):
        root = Path(root)
        files = {name: root / "annotations" / f"instances_{name}2014.json" for name in SPLITS}
        splits = [name for name in SPLITS if files[name].is_file()]
        if split not in splits:
            raise InputError(f"{files[split]}: no such file") if split in SPLITS else \
                split_error(split, splits, root)
        path, images = files[split], image_folder(root, split)
        content = read_annotations(path)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.classes = [category["name"] for category in categories]
        numbers = {category["id"]: number for number, category in enumerate(categories, 1)}
        regions: dict[int, list[Region]] = {image["id"]: [] for image in content["images"]}
        problems = list(collect(content["annotations"], numbers, regions, path))
        self._regions: dict[str, list[Region]] = {}
        self._stated: dict[str, Size] = {}
        entries = []
        for image in sorted(content["images"], key=lambda image: image["id"]):
            own, name = regions[image["id"]], Path(image["file_name"]).stem
            if own:
                self._regions[name], self._stated[name] = own, (image["height"], image["width"])
                tags = tuple(sorted({number - 1 for number, _, _ in own}))
                where = f"{path} (image {image['id']})"
                entries.append(Entry(name, images / image["file_name"], tags, None, where))
        empty, total = len(regions) - len(entries), len(regions)
        notes = [f"{path}: {empty} of {total} images have no annotation and are left out"] if empty else []
        super().__init__(entries, problems, splits, transform, skip_bad, notes=notes)
        self.has_masks = True

    def load_mask(self, index: int) -> np.ndarray:
        """The mask drawn from the annotations, uint8 [H, W] (or the file of `with_masks`)."""
        if self.entries[index].mask is not None:
            return super().load_mask(index)
        mask = np.zeros(self.sizes[index], np.uint8)
        for number, crowd, region in sorted(self._regions[self.names[index]], key=lambda item: not item[1]):
            mask[decode(region, mask.shape)] = IGNORE if crowd else number
        return mask

    def _mask_problem(self, entry: Entry, size: Size) -> str | None:
        if entry.mask is not None:
            return super()._mask_problem(entry, size)
        stated = self._stated[entry.name]
        if stated != size:
            return (f"{entry.image}: {size[0]} x {size[1]} (H x W), but {entry.where} says "
                    f"{stated[0]} x {stated[1]}")
        try:
            for _, _, region in self._regions[entry.name]:
                check(region, size)
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
    for key, fields in (("categories", {"id", "name"}), ("images", {"id", "file_name", "height", "width"}),
                        ("annotations", {"image_id", "category_id", "segmentation"})):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise InputError(f"{path}: no list {key!r}; expected COCO's instances_*.json")
        for number, item in enumerate(items):
            if not isinstance(item, dict) or not fields <= item.keys():
                raise InputError(f"{path}: {key}[{number}] lacks one of {', '.join(sorted(fields))}")
    return content


def collect(annotations: list[dict], numbers: dict[int, int], regions: dict[int, list[Region]],
            path: Path) -> Iterator[str]:
    """Sort annotations by image into `regions`, polygons as arrays (4x smaller); yields what is wrong."""
    for index, item in enumerate(annotations):
        where, region = f"{path}: annotations[{index}]", item["segmentation"]
        if item["category_id"] not in numbers:
            yield f"{where}: category {item['category_id']} is not among the file's categories"
        elif item["image_id"] not in regions:
            yield f"{where}: image {item['image_id']} is not among the file's images"
        else:
            try:
                if isinstance(region, list):
                    region = [np.asarray(polygon, np.float64) for polygon in region]
                number, crowd = numbers[item["category_id"]], bool(item.get("iscrowd"))
                regions[item["image_id"]].append((number, crowd, region))
            except (TypeError, ValueError):
                yield f"{where}: a polygon is not a list of numbers"
