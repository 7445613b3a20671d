"""The connected regions of label maps as files for labelling tools and detectors: COCO instances, YOLO."""
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..distributed import gather, rank
from ..files import to_json, write_text
from .base import Size
from .image_files import IGNORE, read_mask
from .jobs import ImageJobs
from .outlines import label_regions, outline_polygon


class Instance(NamedTuple):
    """One connected region of a label map: its label from 1, its outline and its extent in pixels.

    polygon: int [n, 2] as x, y of pixels' corners. box: x, y, width, height.
    """
    label: int
    polygon: np.ndarray
    area: int
    box: tuple[int, int, int, int]


class ImageInstances(NamedTuple):
    """The instances of one image, its name, its size (H, W), and how many of its pixels are ignored (255)."""
    name: str
    size: Size
    ignored: int
    instances: list[Instance]


def read_instances(folder: Path, names: Sequence[str], workers: int = 0) -> list[ImageInstances]:
    """The instances of the label maps FOLDER/NAME.png, in the order of the names.

    Each process outlines its part of the images and gets those of all. A line says how many label maps have
    ignored pixels, which no instance can express.
    """
    jobs = ImageJobs(names, workers)
    parts = gather(list(jobs.run("outlines", partial(image_instances, folder, names), range(len(names)))))
    order = {name: index for index, name in enumerate(names)}
    found = sorted((item for part in parts for item in part), key=lambda item: order[item.name])
    ignored = sum(item.ignored > 0 for item in found)
    if ignored and rank() == 0:
        print(f"note: {ignored} of {len(found)} label maps in {folder} have pixels of 255 (ignored), which "
              "belong to no instance", file=sys.stderr)
    return found


def image_instances(folder: Path, names: Sequence[str], index: int) -> ImageInstances:
    """The instances of one label map; InputError names a bad file."""
    labels = read_mask(folder / f"{names[index]}.png")
    instances = []
    for label, region, (rows, columns) in label_regions(labels):
        polygon = outline_polygon(region) + [columns.start, rows.start]
        box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        instances.append(Instance(label, polygon, int(region.sum()), box))
    return ImageInstances(names[index], labels.shape, int((labels == IGNORE).sum()), instances)


def write_coco(found: Sequence[ImageInstances], files: Mapping[str, str], classes: Sequence[str], path: Path,
               category_ids: Sequence[int] = (), image_ids: Mapping[str, int] | None = None) -> None:
    """Write COCO's instances file: an annotation for each instance, with one polygon.

    files: the file that `images` names for each image. category_ids, image_ids: COCO's numbers of the classes
    and images, where they have any; others are counted from 1. The main process writes.
    """
    if rank() > 0:
        return
    category_ids = category_ids or range(1, 1 + len(classes))
    image_ids = image_ids or {item.name: number for number, item in enumerate(found, 1)}
    images = []
    annotations = []
    for name, (height, width), _, instances in found:
        images.append({"id": image_ids[name], "file_name": files[name], "height": height, "width": width,
                       "license": 0})
        for label, polygon, area, box in instances:
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_ids[name],
                "category_id": category_ids[label - 1], "segmentation": [polygon.ravel().tolist()],
                "area": area, "bbox": list(box), "iscrowd": 0})
    categories = [{"id": number, "name": name, "supercategory": ""}
                  for number, name in zip(category_ids, classes)]
    write_text(to_json({"info": {"description": "made by clipwsss"},
                        "licenses": [{"id": 0, "name": "", "url": ""}], "images": images,
                        "categories": categories, "annotations": annotations}) + "\n", path)


def write_yolo(found: Sequence[ImageInstances], classes: Sequence[str], folder: Path) -> None:
    """Write YOLO's labels for segmentation: FOLDER/labels/NAME.txt of each image, and FOLDER/data.yaml.

    A line is an instance: its class from 0, then x and y of each corner as shares of the image's width and
    height. The main process writes.
    """
    if rank() > 0:
        return
    for name, (height, width), _, instances in found:
        lines = []
        for label, polygon, *_ in instances:
            corners = (polygon / [width, height]).ravel()
            lines.append(" ".join([str(label - 1), *(f"{value:.6g}" for value in corners)]) + "\n")
        write_text("".join(lines), folder / "labels" / f"{name}.txt")
    names = "".join(f"  {number}: {to_json(name)}\n" for number, name in enumerate(classes))
    write_text(f"path: .\ntrain: images\nval: images\nnames:\n{names}", folder / "data.yaml")
