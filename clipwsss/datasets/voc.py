"""Data sets in VOC's layout: PASCAL VOC 2012, with or without the SBD-augmented masks, and the toy world."""
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ..distributed import barrier, is_main
from ..errors import InputError
from ..toy.shapes import CLASSES
from ..toy.world import RECIPE, draw_world
from .base import MOST_PIXELS, Entry, TagDataset, files_of, masks_of, split_error


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
        root = voc_folder(Path(root))
        augmented = masks_of(root / "SegmentationClassAug")
        splits, listed = split_ids(root, split, augmented)
        masks = augmented | masks_of(root / "SegmentationClass")
        entries = []
        problems = []
        for name, where in listed:
            image = root / "JPEGImages" / f"{name}.jpg"
            if split == "test":
                entries.append(Entry(name, image, None, None, where))
                continue
            try:
                tags = self._tags(root / "Annotations" / f"{name}.xml", where)
                entries.append(Entry(name, image, tags, masks.get(name), where))
            except InputError as error:
                problems.append(str(error))
        super().__init__(entries, problems, splits, skip_bad, max_pixels)

    def _tags(self, path: Path, where: str) -> tuple[int, ...]:
        """The classes of an annotation file's objects; the names of their parts are no tags."""
        try:
            objects = ElementTree.parse(path).iter("object")
        except FileNotFoundError:
            raise InputError(f"{path}: no such annotation, for the image listed in {where}") from None
        except (ElementTree.ParseError, OSError) as error:
            raise InputError(f"{path}: not a readable annotation ({error}), listed in {where}") from error
        return self.class_numbers(((item.findtext("name") or "").strip() for item in objects), path)


class ToyDataset(VocDataset):
    """The toy world at `root`; it is drawn there first (seed 0) if the folder is missing or empty.

    The splits are train and val; val is held out and has textures of its own. InputError if `root` holds
    anything else.
    """
    classes = CLASSES

    def __init__(self, root: Path | str, split: str, skip_bad: bool = False, max_pixels: int = MOST_PIXELS):
        if is_main() and not (Path(root) / RECIPE).is_file():
            draw_world(root)
        barrier()
        super().__init__(root, split, skip_bad, max_pixels)

    def subtypes(self, index: int) -> dict[str, list[str]]:
        """Class -> its sub-types in the image: the truth that selected words are compared with."""
        path = self.entries[index].image.parents[1] / "Annotations" / f"{self.names[index]}.xml"
        present: dict[str, list[str]] = {}
        for item in ElementTree.parse(path).iter("object"):
            present.setdefault(item.findtext("name"), []).append(item.findtext("subtype"))
        return present


def voc_folder(root: Path) -> Path:
    """The folder VOC2012, which is `root` or lies in it; InputError if there is none."""
    inside = root / "VOCdevkit" / "VOC2012"
    for folder in (root, root / "VOC2012", inside):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise InputError(f"--data-root {root}: no VOC2012 data (JPEGImages, Annotations and ImageSets)")


def split_ids(root: Path, split: str, augmented: dict[str, Path]) -> tuple[list[str], list[tuple[str, str]]]:
    """(names of all splits, (image id, place that lists it) of one split).

    augmented: image id -> mask of SegmentationClassAug. InputError for an unknown or empty split.
    """
    files = {path.stem: path for path in files_of(root / "ImageSets" / "Segmentation", (".txt",))}
    splits = list(files)
    if "train_aug" not in files and "val" in files and augmented:
        splits.append("train_aug")
    if split not in splits:
        raise split_error(split, splits, root)
    if split in files:
        listed = read_ids(files[split])
    else:
        held_out = {name for name, _ in read_ids(files["val"])}
        listed = [(name, str(path)) for name, path in augmented.items() if name not in held_out]
    if not listed:
        raise InputError(f"{files.get(split, root / 'SegmentationClassAug')}: split {split} is empty")
    return splits, listed


def read_ids(path: Path) -> list[tuple[str, str]]:
    """(image id, "file:line") of the lines of a split file; each is an id or begins with the image's path."""
    numbered = enumerate(path.read_text().splitlines(), 1)
    return [(Path(line.split()[0]).stem, f"{path}:{number}") for number, line in numbered if line.strip()]
