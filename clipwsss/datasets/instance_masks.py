"""Masks of a folder of images that one COCO instances file holds, as labelling tools export them."""
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import InputError
from ..files import nfc
from .base import Size
from .coco import LabelledRegion, draw_region, group_by_image, read_annotations, read_regions
from .image_names import SUFFIXES

DrawnMask = tuple[Size, list[LabelledRegion]]  # the size (H, W) that the file states, and the regions


def read_instance_masks(path: Path, classes: Sequence[str],
                        names: Collection[str]) -> tuple[dict[str, DrawnMask], list[str]]:
    """(image name -> the size that the file states and the regions, notes) of the images `names`.

    The file's categories are found among the classes by their names. An image without annotations has an
    empty mask. Crowd regions are regions like others: CVAT marks each painted mask as a crowd. InputError: a
    file that is not COCO's, a category that is no class, or a damaged region.
    """
    content = read_annotations(path)
    labels = {}
    for category in content["categories"]:
        if nfc(category["name"]) in classes:
            labels[category["id"]] = list(classes).index(nfc(category["name"])) + 1
        elif nfc(category["name"]).lower() != "background":
            raise InputError(f"{path}: category {category['name']!r} is not in classes.txt; valid are "
                             f"{', '.join(classes)}")
    by_image, problems = group_by_image(content, path)
    if problems:
        raise InputError(problems[0])
    found = {}
    others = []
    for image in content["images"]:
        file = PurePosixPath(image["file_name"].replace("\\", "/"))
        name = nfc(file.stem if file.suffix.lower() in SUFFIXES else file.name)
        size = (image["height"], image["width"])
        if name not in names:
            others.append(name)
        elif name in found:
            raise InputError(f"{path}: image {name} is listed twice")
        else:
            found[name] = (size, read_regions(by_image[image["id"]], labels, size, f"{path} (image {name})"))
    notes = []
    if others:
        notes.append(f"note: {path}: image {others[0]} is not in the folder images ({len(others)} such "
                     "images)")
    return found, notes


def draw_instance_mask(regions: Sequence[LabelledRegion], size: Size) -> np.ndarray:
    """The mask uint8 [H, W] of an image's regions; later ones are drawn on top."""
    mask = np.zeros(size, np.uint8)
    for label, _, region in regions:
        mask[draw_region(region, size)] = label
    return mask
