"""PASCAL VOC 2012, with or without the SBD-augmented masks."""
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .base import Entry, TagDataset, Transform, files_of, split_error


class VocDataset(TagDataset):
    """The VOC2012 layout below `root` (the folder VOC2012 itself, or the VOCdevkit around it).

    Splits are ImageSets/Segmentation/SPLIT.txt, one id a line (or `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`);
    without a train_aug.txt, `train_aug` is every id of SegmentationClassAug that is not in val (10,582 on VOC 2012).
    Tags are the objects of Annotations/ID.xml; as in IRN's label file, difficult and truncated objects count.
    Masks are SegmentationClassAug/ID.png, or SegmentationClass/ID.png where that is missing.
    Split `test` has neither: its labels are all zero, so it serves for prediction only.
    Subclasses change `classes`, `palette` and `image_suffix`.
    """
    classes = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
               "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]
    image_suffix = ".jpg"
    untagged_splits: Sequence[str] = ("test",)

    def __init__(self, root: Path | str, split: str, transform: Transform | None = None, skip_bad: bool = False):
        root = find_root(Path(root))
        masks = {**_masks(root / "SegmentationClass"), **_masks(root / "SegmentationClassAug")}
        splits, listed = split_ids(root, split)
        tagged = split not in self.untagged_splits
        numbers = {name: number for number, name in enumerate(self.classes)}
        entries, problems = [], []
        for name, where in listed:
            tags = ()
            if tagged:
                path = root / "Annotations" / f"{name}.xml"
                try:
                    tags = tuple(sorted({numbers[tag] for tag in object_names(path)}))
                except InputError as error:
                    problems.append(f"{error}, listed in {where}")
                    continue
                except KeyError as error:
                    problems.append(f"{path}: unknown class {error}; valid are {', '.join(self.classes)}")
                    continue
            image = root / "JPEGImages" / (name + self.image_suffix)
            entries.append(Entry(name, image, tags, masks.get(name) if tagged else None, where))
        super().__init__(entries, problems, splits, transform, skip_bad, needs_tags=tagged)


def find_root(root: Path) -> Path:
    """The folder that holds JPEGImages: `root`, or VOC2012 inside it; InputError where there is none."""
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise InputError(f"--data-root {root}: no VOC2012 data here (a folder with JPEGImages, Annotations and ImageSets)")


def split_ids(root: Path, split: str) -> tuple[list[str], list[tuple[str, str]]]:
    """(the splits this data has, the (id, place that lists it) of one); InputError for a wrong or empty split."""
    files = files_of(root / "ImageSets" / "Segmentation", (".txt",))
    augmented = root / "SegmentationClassAug"
    made = "train_aug" not in files and augmented.is_dir() and "val" in files
    splits = [*files, "train_aug"] if made else list(files)
    if split not in splits:
        raise split_error(split, splits, root)
    if split in files:
        source, listed = files[split], read_ids(files[split])
    else:
        held_out = {name for name, _ in read_ids(files["val"])}
        source = augmented
        listed = [(name, f"{path}") for name, path in _masks(augmented).items() if name not in held_out]
    if not listed:
        raise InputError(f"{source}: split {split} is empty")
    return splits, listed


def read_ids(path: Path) -> list[tuple[str, str]]:
    """(image id, `file:line`) of a split file's lines, which hold an id or the image's path first."""
    lines = path.read_text().splitlines()
    return [(Path(line.split()[0]).stem, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def object_names(path: Path) -> list[str]:
    """Class names of an annotation file's objects (not of their parts); InputError if it cannot be read."""
    try:
        tree = ElementTree.parse(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such annotation") from None
    except (ElementTree.ParseError, OSError) as error:
        raise InputError(f"{path}: not a readable annotation ({error})") from error
    return [(item.findtext("name") or "").strip() for item in tree.iter("object")]


def _masks(folder: Path) -> dict[str, Path]:
    return files_of(folder, (".png",)) if folder.is_dir() else {}
