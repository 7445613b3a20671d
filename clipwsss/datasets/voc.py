"""Data sets in VOC's layout: PASCAL VOC 2012, with or without the SBD-augmented masks, and the toy world."""
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path, PurePosixPath

from ..errors import InputError
from ..files import existing, nfc, read_text
from ..npy_files import read_class_labels
from ..toy.scenes import CLASSES
from .base import Entry, TagDataset, split_error
from .image_files import MOST_PIXELS, files_of, label_maps_of

OFFICIAL = "SegmentationClass"
AUGMENTED = "SegmentationClassAug"
LABELS = "cls_labels.npy"
MISSING_LIST = ("VOC's archive lacks SBD's list of 10,582 training images: save it as ImageSets/Segmentation/"
                "trainaug.txt (clipwsss/datasets/FORMATS.md says where it is), or train on --split train")


class VocDataset(TagDataset):
    """The VOC2012 layout below `root` (the folder VOC2012 itself, or the VOCdevkit around it).

    Splits are ImageSets/Segmentation/SPLIT.txt, with `ID` or `/JPEGImages/ID.jpg /.../ID.png` in each line.
    `train_aug` is the list train_aug.txt or trainaug.txt of SBD's images (10,582). VOC's own archive has no
    such list; without one, `train_aug` is every image of SegmentationClassAug that is not in val.
    Tags are the objects of Annotations/ID.xml, difficult and truncated ones too, as in IRN's label file. An
    image without annotation has the tags of such a label file, cls_labels.npy in `root` (see `read_labels`).
    A mask is SegmentationClass/ID.png, the official one that papers score, or, where there is none,
    SegmentationClassAug/ID.png. Images of `test` have neither tags nor masks: their labels are zero.
    """
    classes = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
               "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
               "tvmonitor"]

    def __init__(self, root: Path | str, split: str, skip_bad: bool = False, max_pixels: int = MOST_PIXELS):
        root = voc_folder(root)
        augmented = label_maps_of(root / AUGMENTED, optional=True)
        official = label_maps_of(root / OFFICIAL, optional=True)
        masks = augmented | official
        splits, listed = split_ids(root, split, augmented)
        annotations = {name: existing(root / "Annotations" / f"{name}.xml") for name, _ in listed}
        labels = {}
        has_labels = split != "test" and (root / LABELS).is_file()
        if has_labels and not all(path.is_file() for path in annotations.values()):
            labels = read_labels(root / LABELS, len(self.classes))
        entries = []
        problems = []
        for name, where in listed:
            image = existing(root / "JPEGImages" / f"{name}.jpg")
            annotation = annotations[name]
            if split == "test":
                entries.append(Entry(name, image, None, None, where))
            elif name in labels and not annotation.is_file():
                entries.append(Entry(name, image, labels[name], masks.get(name), where))
            else:
                try:
                    tags = self.class_numbers(read_objects(annotation, where), annotation)
                except InputError as error:
                    problems.append(str(error))
                else:
                    entries.append(Entry(name, image, tags, masks.get(name), where))
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


def voc_folder(root: Path | str) -> Path:
    """The folder VOC2012: `root` or a folder in it; InputError if none of them has JPEGImages."""
    for folder in (Path(root), Path(root) / "VOC2012", Path(root) / "VOCdevkit" / "VOC2012"):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise InputError(f"--data-root {root}: no VOC2012 data; expected JPEGImages, Annotations and ImageSets")


def object_names(root: ElementTree.Element) -> set[str]:
    """The names of the objects of an annotation; those of their parts, such as `head`, are not tags."""
    return {(item.findtext("name") or "").strip() for item in root.iter("object")}


def read_objects(path: Path, where: str) -> set[str]:
    """The names of an annotation file's objects; InputError for a bad or missing file.

    where: the place that lists the image, for the message.
    """
    try:
        return object_names(ElementTree.parse(path).getroot())
    except FileNotFoundError:
        raise InputError(f"{path}: no such annotation, for the image listed in {where}") from None
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # or its encoding
        raise InputError(f"{path}: not a readable annotation ({error}), listed in {where}") from error


def read_labels(path: Path, n_classes: int) -> dict[str, tuple[int, ...]]:
    """Image id -> its tags, from the cls_labels.npy of IRN's, CLIMS', WeakTr's or SemPLeS' release.

    The file holds a pickled dictionary from an image to an array [n_classes] of 0 and 1. An image is called
    2007_000032 (WeakTr's and SemPLeS' files may add .jpg), or by the number 2007000032 (IRN and CLIMS).
    No code in the file is run. InputError: a damaged file, or one that holds something else.
    """
    tags = {}
    for image, numbers in read_class_labels(path, n_classes).items():
        name = image.removesuffix(".jpg")
        if name.isdigit():
            name = f"{name[:4]}_{name[4:]}"
        tags[name] = numbers
    return tags


def listed_name(line: str, images: Path) -> str:
    """The name of the image, below the folder `images`, that a line of a split file names.

    The line is an ID, or begins with the path of an image. A name may hold dots and blanks: what follows a
    blank is another column only where no image has the whole line as its name.
    """
    if existing(images / f"{line}.jpg").is_file():
        return nfc(line)
    path = re.match(r".*?\.(jpe?g|png)(?=\s|$)", line, re.IGNORECASE)
    written = path[0] if path else line.split()[0]
    name = PurePosixPath(written.replace("\\", "/")).name
    return nfc(re.sub(r"\.(jpe?g|png)$", "", name, flags=re.IGNORECASE))


def split_ids(root: Path, split: str, augmented: dict[str, Path]) -> tuple[list[str], list[tuple[str, str]]]:
    """The names of all splits, and (image id, place that lists it) of each image of one split.

    augmented: image id -> mask of SegmentationClassAug. A line of a split file is an image id or begins with
    the image's path. InputError for an unknown or empty split.
    """
    sources = split_sources(root)
    if split not in sources:
        if split == "train_aug":
            raise InputError(f"--split train_aug: {root} has {', '.join(sources)}; {MISSING_LIST}")
        raise split_error(split, list(sources), root)
    source = sources[split]
    path = sources["val"] if source.is_dir() else source
    listed = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            listed.append((listed_name(line.strip(), root / "JPEGImages"), f"{path}:{number}"))
    if source.is_dir():  # every augmented mask but those of val
        held_out = {name for name, _ in listed}
        listed = [(name, str(mask)) for name, mask in augmented.items() if name not in held_out]
    if not listed:
        raise InputError(f"{source}: split {split} is empty")
    return list(sources), listed


def split_sources(root: Path) -> dict[str, Path]:
    """Split -> the file of ImageSets/Segmentation that lists its images.

    For `train_aug` this is train_aug.txt or trainaug.txt, or else the folder SegmentationClassAug.
    """
    sources = {path.stem: path for path in files_of(root / "ImageSets" / "Segmentation", (".txt",))}
    if "trainaug" in sources:
        sources.setdefault("train_aug", sources.pop("trainaug"))
    if "train_aug" not in sources and "val" in sources and files_of(root / AUGMENTED, optional=True):
        sources["train_aug"] = root / AUGMENTED
    return sources
