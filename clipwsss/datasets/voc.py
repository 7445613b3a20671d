"""Data sets in VOC's layout: PASCAL VOC 2012, with or without the SBD-augmented masks, and the toy world."""
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ..errors import InputError
from ..files import existing, nfc, read_text
from ..toy.scenes import CLASSES
from .base import MOST_PIXELS, Entry, TagDataset, files_of, split_error


class VocDataset(TagDataset):
    """The VOC2012 layout below `root` (the folder VOC2012 itself, or the VOCdevkit around it).

    Splits are ImageSets/Segmentation/SPLIT.txt, with `ID` or `/JPEGImages/ID.jpg /.../ID.png` in each line.
    Without train_aug.txt, `train_aug` is every image of SegmentationClassAug that is not in val (10,582).
    Tags are the objects of Annotations/ID.xml, difficult and truncated ones too, as in IRN's label file.
    A mask is SegmentationClass/ID.png, the official one that papers score, or, where there is none,
    SegmentationClassAug/ID.png. Images of `test` have neither tags nor masks: their labels are zero.
    """
    classes = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
               "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
               "tvmonitor"]

    def __init__(self, root: Path | str, split: str, skip_bad: bool = False, max_pixels: int = MOST_PIXELS):
        folders = (Path(root), Path(root) / "VOC2012", Path(root) / "VOCdevkit" / "VOC2012")
        found = [folder for folder in folders if (folder / "JPEGImages").is_dir()]
        if not found:
            raise InputError(f"--data-root {root}: no VOC2012 data; expected JPEGImages, Annotations and "
                             "ImageSets")
        root = found[0]
        augmented = {path.stem: path for path in files_of(root / "SegmentationClassAug", optional=True)}
        official = {path.stem: path for path in files_of(root / "SegmentationClass", optional=True)}
        masks = augmented | official
        splits, listed = split_ids(root, split, augmented)
        entries = []
        problems = []
        for name, where in listed:
            image = root / "JPEGImages" / f"{name}.jpg"
            if split == "test":
                entries.append(Entry(name, image, None, None, where))
                continue
            path = root / "Annotations" / f"{name}.xml"
            try:
                objects = ElementTree.parse(path).iter("object")
                # An object's own name; those of its parts, such as `head`, are not tags.
                names = {(item.findtext("name") or "").strip() for item in objects}
                tags = self.class_numbers(names, path)
                entries.append(Entry(name, image, tags, masks.get(name), where))
            except FileNotFoundError:
                problems.append(f"{path}: no such annotation, for the image listed in {where}")
            except (ElementTree.ParseError, OSError) as error:
                problems.append(f"{path}: not a readable annotation ({error}), listed in {where}")
            except InputError as error:
                problems.append(str(error))
        super().__init__(entries, problems, splits, skip_bad, max_pixels)


class ToyDataset(VocDataset):
    """The toy world, which `python -m clipwsss.toy` draws in VOC's layout.

    The splits are train and val; val has textures that do not occur in train.
    """
    classes = CLASSES

    def subtypes(self, index: int) -> dict[str, list[str]]:
        """Class -> its sub-types in the image: the truth that selected words are compared with."""
        path = self.entries[index].image.parents[1] / "Annotations" / f"{self.names[index]}.xml"
        present: dict[str, list[str]] = {}
        for item in ElementTree.parse(path).iter("object"):
            present.setdefault(item.findtext("name"), []).append(item.findtext("subtype"))
        return present


def split_ids(root: Path, split: str, augmented: dict[str, Path]) -> tuple[list[str], list[tuple[str, str]]]:
    """The names of all splits, and (image id, place that lists it) of each image of one split.

    augmented: image id -> mask of SegmentationClassAug. A line of a split file is an image id or begins with
    the image's path. InputError for an unknown or empty split.
    """
    files = {path.stem: path for path in files_of(root / "ImageSets" / "Segmentation", (".txt",))}
    splits = list(files)
    if "train_aug" not in files and "val" in files and augmented:
        splits.append("train_aug")
    if split not in splits:
        raise split_error(split, splits, root)
    path = files.get(split, files.get("val"))
    listed = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            listed.append((Path(line.split()[0]).stem, f"{path}:{number}"))
    if split not in files:  # train_aug, as no file lists it: every augmented mask but those of val
        held_out = {name for name, _ in listed}
        listed = [(name, str(path)) for name, path in augmented.items() if name not in held_out]
        path = root / "SegmentationClassAug"
    if not listed:
        raise InputError(f"{path}: split {split} is empty")
    return splits, listed
