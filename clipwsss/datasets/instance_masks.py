"""Masks of a folder of images that one COCO instances file holds, as labelling tools export them."""
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from ..errors import InputError
from ..files import nfc
from .base import Size
from .coco import LabelledRegion, group_by_image, read_annotations, read_regions
from .image_names import without_suffix

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
        name = nfc(without_suffix(file).name)
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
