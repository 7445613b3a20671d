"""PASCAL VOC 2012, with or without the SBD-augmented masks."""
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ..errors import InputError
from .base import Entry, TagDataset, files_of, masks_of, split_error
from .reading import Checked


class VocDataset(TagDataset):
    """The VOC2012 layout below `root` (the folder VOC2012 itself, or the VOCdevkit around it).

    Splits are ImageSets/Segmentation/SPLIT.txt, an id or `/JPEGImages/ID.jpg /.../ID.png` a line; without
    train_aug.txt, `train_aug` is every id of SegmentationClassAug that is not in val (10,582). Tags are the
    objects of Annotations/ID.xml, difficult and truncated ones too, as in IRN's label file. Masks are
    SegmentationClass/ID.png, the official ones that papers score, else SegmentationClassAug/ID.png. `test`
    has neither, its labels are zero.
    """
    classes = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
               "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
               "tvmonitor"]

    def __init__(self, root: Path | str, split: str, skip_bad: bool = False, checked: Checked | None = None):
        root = Path(root)
        places = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
        root = next((folder for folder in places if (folder / "JPEGImages").is_dir()), None)
        if root is None:
            raise InputError(f"--data-root {places[0]}: no VOC2012 data "
                             "(JPEGImages, Annotations and ImageSets)")
        augmented = masks_of(root / "SegmentationClassAug")
        splits, listed = split_ids(root, split, augmented)
        masks = {**augmented, **masks_of(root / "SegmentationClass")}
        entries, problems = [], []
        for name, where in listed:
            image, tags, mask = root / "JPEGImages" / f"{name}.jpg", None, None
            if split != "test":
                mask = masks.get(name)
                try:
                    tags = self._tags(root / "Annotations" / f"{name}.xml", where)
                except InputError as error:
                    problems.append(str(error))
                    continue
            entries.append(Entry(name, image, tags, mask, where))
        super().__init__(entries, problems, splits, skip_bad, checked=checked)

    def _tags(self, path: Path, where: str) -> tuple[int, ...]:
        """Classes of an annotation file's objects (their parts have names too, which are no tags)."""
        try:
            objects = ElementTree.parse(path).iter("object")
        except FileNotFoundError:
            raise InputError(f"{path}: no such annotation, for the image listed in {where}") from None
        except (ElementTree.ParseError, OSError) as error:
            raise InputError(f"{path}: not a readable annotation ({error}), listed in {where}") from error
        return self._numbers(((item.findtext("name") or "").strip() for item in objects), path)


def split_ids(root: Path, split: str, augmented: dict[str, Path]) -> tuple[list[str], list[tuple[str, str]]]:
    """(the splits there are, the (id, place that lists it) of one); InputError for a wrong or empty split."""
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
    """(image id, `file:line`) of a split file's lines, each an id or the image's path first."""
    numbered = enumerate(path.read_text().splitlines(), 1)
    return [(Path(line.split()[0]).stem, f"{path}:{number}") for number, line in numbered if line.strip()]
