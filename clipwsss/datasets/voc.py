"""PASCAL VOC 2012, with or without the SBD-augmented masks."""
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ..errors import InputError
from .base import Entry, TagDataset, Transform, files_of, split_error


class VocDataset(TagDataset):
    """The VOC2012 layout below `root` (the folder VOC2012 itself, or the VOCdevkit around it).

    Splits are ImageSets/Segmentation/SPLIT.txt, a line being an id or `/JPEGImages/ID.jpg /.../ID.png`;
    without train_aug.txt, `train_aug` is every id of SegmentationClassAug that is not in val (10,582).
    Tags are the objects of Annotations/ID.xml; difficult and truncated ones count, as in IRN's label file.
    Masks are SegmentationClassAug/ID.png, or SegmentationClass/ID.png where that is missing.
    Split `test` has neither: its labels are all zero, so it serves for prediction only.
    Subclasses change `classes`, `palette` and `image_suffix`.
    """
    classes = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
               "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
               "tvmonitor"]
    image_suffix = ".jpg"

    def __init__(self, root: Path | str, split: str, transform: Transform | None = None,
                 skip_bad: bool = False):
        root = find_root(Path(root))
        splits, listed = split_ids(root, split)
        annotated = split != "test"
        masks = {**masks_of(root / "SegmentationClass"), **masks_of(root / "SegmentationClassAug")}
        entries, problems = [], []
        for name, where in listed:
            try:
                tags = self._tags(root / "Annotations" / f"{name}.xml", where) if annotated else ()
            except InputError as error:
                problems.append(str(error))
                continue
            image = root / "JPEGImages" / (name + self.image_suffix)
            entries.append(Entry(name, image, tags, masks.get(name) if annotated else None, where))
        super().__init__(entries, problems, splits, transform, skip_bad, needs_tags=annotated)

    def _tags(self, path: Path, where: str) -> tuple[int, ...]:
        """Classes of an annotation file's objects (their parts have names too, which are no tags)."""
        try:
            objects = ElementTree.parse(path).iter("object")
        except FileNotFoundError:
            raise InputError(f"{path}: no such annotation, for the image listed in {where}") from None
        except (ElementTree.ParseError, OSError) as error:
            raise InputError(f"{path}: not a readable annotation ({error}), listed in {where}") from error
        names = {(item.findtext("name") or "").strip() for item in objects}
        unknown = sorted(names - set(self.classes))
        if unknown:
            raise InputError(f"{path}: unknown class {unknown[0]!r}; valid are {', '.join(self.classes)}")
        return tuple(sorted(self.classes.index(name) for name in names))


def find_root(root: Path) -> Path:
    """The folder that holds JPEGImages: `root`, or VOC2012 inside it; InputError where there is none."""
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise InputError(f"--data-root {root}: no VOC2012 data (JPEGImages, Annotations and ImageSets)")


def split_ids(root: Path, split: str) -> tuple[list[str], list[tuple[str, str]]]:
    """(the splits there are, the (id, place that lists it) of one); InputError for a wrong or empty split."""
    files = files_of(root / "ImageSets" / "Segmentation", (".txt",))
    augmented = masks_of(root / "SegmentationClassAug")
    splits = list(files)
    if "train_aug" not in files and "val" in files and augmented:
        splits.append("train_aug")
    if split not in splits:
        raise split_error(split, splits, root)
    if split in files:
        source, listed = files[split], read_ids(files[split])
    else:
        held_out = {name for name, _ in read_ids(files["val"])}
        source = root / "SegmentationClassAug"
        listed = [(name, str(path)) for name, path in augmented.items() if name not in held_out]
    if not listed:
        raise InputError(f"{source}: split {split} is empty")
    return splits, listed


def read_ids(path: Path) -> list[tuple[str, str]]:
    """(image id, `file:line`) of a split file's lines, each an id or the image's path first."""
    numbered = enumerate(path.read_text().splitlines(), 1)
    return [(Path(line.split()[0]).stem, f"{path}:{number}") for number, line in numbered if line.strip()]


def masks_of(folder: Path) -> dict[str, Path]:
    """Id -> mask of a folder that need not be there."""
    return files_of(folder, (".png",)) if folder.is_dir() else {}
