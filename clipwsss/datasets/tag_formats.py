"""The forms in which tools export tags: FORMATS has one row for each, with the reader of its records.

A record is a place, "file:line", and the fields of an image: `image`, the name of its file, and `labels`, a
list of names or a text that separates them, or other columns, which `named_fields` knows.
"""
import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, input_errors
from ..files import read_text
from ..npy_files import read_class_labels
from .coco import LISTS, read_annotations
from .image_names import SUFFIXES, written_path
from .voc import object_names

# Names that a column may have, in any case; of several for the image, the first is taken.
IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "filepath", "image_name", "image_path",
                 "image_id", "imageid", "id", "path")
LABEL_COLUMNS = ("labels", "label", "tags", "tag", "classes", "class", "class_name", "category",
                 "choice", "choices", "labelname", "target")
SPLIT_COLUMNS = ("split", "subset")
OTHER_COLUMNS = ("", "unnamed: 0", "index", "id", "width", "height")  # which are no classes
MARKS = {"1": True, "1.0": True, "true": True,  # values in a class's column
         "0": False, "0.0": False, "-1": False, "false": False, "": False}
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
TAG_LISTS = LISTS | {"images": {"id", "file_name"}, "annotations": {"image_id", "category_id"}}
LABEL_STUDIO = {"annotator", "annotation_id", "created_at", "updated_at", "lead_time", "id", "agreement",
                "history"}  # what Label Studio adds to the fields of a task and its answers
Record = tuple[str, object]


class TagFormat(NamedTuple):
    """A form of a table of tags: how it is recognised, and the reader that gives its records.

    kind: `records` (CSV, JSON lines or a list), `object` (one JSON object), `xml` or `npy`.
    keys: columns, keys or the root element that a table of this form has, in lower case.
    read: called with the path, its content and the user's classes, if there are any.
    """
    name: str
    kind: str
    keys: set[str]
    read: Callable[[Path, object, Sequence[str] | None], Iterable[Record]]


def read_records(path: Path, classes: Sequence[str] | None) -> Iterable[Record]:
    """The records of a table of tags; InputError for a damaged file and for one of no known form."""
    kind, keys, content = open_table(path)
    for form in FORMATS:
        if form.kind == kind and form.keys <= keys:
            return form.read(path, content, classes)
    raise InputError(f"{path}: <{' '.join(keys)}> is no table of tags; expected <annotations> of CVAT for "
                     "images 1.1 or <annotation> of VOC and LabelImg")


def open_table(path: Path) -> tuple[str, set[str], object]:
    """(kind, keys, content) of a table, see TagFormat; InputError if it cannot be read."""
    if path.suffix.lower() == ".npy":
        return "npy", set(), None
    if path.suffix.lower() == ".xml":
        try:
            root = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # or its encoding
            raise InputError(f"{path}: not a readable XML file ({error})") from error
        return "xml", {root.tag}, root
    text = read_text(path)
    if text.lstrip()[:1] not in ("{", "["):
        records = read_csv(path, text)
    else:
        content = None
        with suppress(ValueError, RecursionError):  # lines of objects are not one JSON value
            content = json.loads(text)
        if isinstance(content, dict) and ("annotations" in content or is_map_of_labels(content)):
            return "object", set(content), content
        if isinstance(content, list):
            records = [(f"{path}: [{number}]", item) for number, item in enumerate(content)]
        else:
            records = [(f"{path}:{number}", line)
                       for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    keys = {name.strip().lower()
            for _, fields in records if isinstance(fields, dict) for name in fields if name}
    return "records", keys, records


def is_map_of_labels(content: dict) -> bool:
    """Whether a JSON object maps images to their labels under its key `labels`, and is no image's record."""
    return isinstance(content.get("labels"), dict) and not any(name in content for name in IMAGE_COLUMNS)


# ---- tables of columns

def read_csv(path: Path, text: str) -> list[Record]:
    """The record of each line that is not empty; InputError if the first line has none of the known forms."""
    first = text.partition("\n")[0]
    delimiter = max(",;\t|", key=first.count)
    names = [name.strip('" \r').lower() for name in first.split(delimiter)]
    has_image = any(name in IMAGE_COLUMNS for name in names)
    if len(names) > 1 and not has_image and not {"annotation_id", "annotator"} <= set(names):
        raise InputError(f"{path}:1: the first line must be `image,labels`, `image,labels,split` or `image` "
                         f"and a column for each class ({accepted_columns()}); it is {first.strip()!r}")
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise InputError(f"{path}:1: two columns are called {twice[0]!r}")
    header = None if len(names) > 1 or has_image else ["image"]  # a single column may lack its name
    reader = csv.DictReader(io.StringIO(text), header, delimiter=delimiter, skipinitialspace=True)
    with input_errors(f"{path}: ", csv.Error):
        records = [(f"{path}:{reader.line_num}", fields) for fields in reader if any(fields.values())]
    return records


def accepted_columns() -> str:
    """The names of columns that are known, for messages."""
    return (f"the image's column may be called {', '.join(IMAGE_COLUMNS)}, the labels' "
            f"{', '.join(LABEL_COLUMNS)}, the split's {', '.join(SPLIT_COLUMNS)}")


def named_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """The fields of a record under the names `image`, `labels` and `split`, or with a field for each class.

    ValueError: several columns may hold the labels.
    """
    spelled = {name.strip().lower(): name for name in fields}
    images = [name for name in IMAGE_COLUMNS if name in spelled]
    labels = [name for name in LABEL_COLUMNS if name in spelled]
    splits = [name for name in SPLIT_COLUMNS if name in spelled]
    if len(labels) > 1:
        raise ValueError(f"the columns {' and '.join(labels)} may both hold the labels; keep one of them")
    named = {}
    for role, names in (("image", images), ("labels", labels), ("split", splits)):
        if names:
            named[role] = fields[spelled[names[0]]]
    if not labels:
        known = {*images[:1], *splits[:1], *OTHER_COLUMNS}
        named |= {spelled[name].strip(): fields[spelled[name]] for name in spelled if name not in known}
    return named


def lower_case(fields: object) -> dict[str, object]:
    """The fields of a record under names in lower case; none where the record is no dictionary."""
    if not isinstance(fields, dict):
        return {}
    return {name.strip().lower(): value for name, value in fields.items() if name is not None}


def columns(path: Path, records: list[Record], _: object) -> list[Record]:
    """Records as they are; InputError where two columns may hold the labels, for the whole table at once."""
    if records:
        with input_errors(f"{path}: "):
            named_fields(lower_case(records[0][1]))
    return records


def label_studio(path: Path, records: list[Record], _: object) -> Iterator[Record]:
    """Label Studio's JSON-MIN and CSV: a task's data and its answers, called as in the labelling interface.

    A single choice is its text, several are {"choices": [...]}, which CSV holds as JSON; regions have their
    labels under a key such as `rectanglelabels`. A task of several annotators has several records.
    InputError: it is not clear which column holds the image or the labels.
    """
    values: dict[str, list[object]] = {}
    for _, fields in records:
        for name, value in lower_case(fields).items():
            if name not in LABEL_STUDIO:
                values.setdefault(name, []).append(value)
    images = [name for name in values if name in IMAGE_COLUMNS]
    if not images:
        images = [name for name in values
                  if any(written_path(str(value)).lower().endswith(SUFFIXES) for value in values[name])]
    if not images:
        raise InputError(f"{path}: no column holds images; call it {IMAGE_COLUMNS[0]}")
    others = [name for name in values if name != images[0] and any(values[name])]
    labels = [name for name in others
              if name in LABEL_COLUMNS or any(holds_answers(value) for value in values[name])]
    if not labels:
        labels = others
    if len(labels) > 1:
        raise InputError(f"{path}: the labels may be in {', '.join(labels)}; delete the columns that hold no "
                         "labels, or rename the right one to choice")
    for where, fields in records:
        spelled = lower_case(fields)
        answer = spelled.get(labels[0]) if labels else None
        yield where, {"image": spelled.get(images[0]) or "", "labels": answered(answer)}


def holds_answers(value: object) -> bool:
    """Whether a field of Label Studio's holds several choices or regions, and no plain text."""
    return isinstance(value, list | dict) or str(value).startswith(('{"', '[{"'))


def answered(value: object) -> list[str]:
    """The labels in a field of Label Studio's."""
    if isinstance(value, str) and holds_answers(value):
        with suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [name for item in value for name in answered(item)]
    if isinstance(value, dict):
        return [name for key, item in value.items() if key == "choices" or key.endswith("labels")
                for name in answered(item)]
    return []


def label_studio_whole(path: Path, *_: object) -> list[Record]:
    """Label Studio's full JSON is refused: it also holds predictions and cancelled answers."""
    raise InputError(f"{path}: Label Studio's JSON; export JSON-MIN or CSV instead")


def fiftyone_columns(path: Path, records: list[Record], _: object) -> list[Record]:
    """FiftyOne's CSV, which has a field of classifications as FIELD.label; its `tags` are no classes.

    InputError: several columns may hold the labels.
    """
    names = [name for name in lower_case(records[0][1]) if name.endswith(".label")]
    if len(names) > 1:
        raise InputError(f"{path}: the columns {' and '.join(names)} may both hold the labels; keep one")
    if not names:
        return columns(path, records, None)
    spelled = [(where, lower_case(fields)) for where, fields in records]
    return [(where, {"image": fields.get("filepath", ""), "labels": fields.get(names[0])})
            for where, fields in spelled]


# ---- other files

def coco(path: Path, *_: object) -> list[Record]:
    """COCO's images with the names of their annotations' categories; regions are not read."""
    content = read_annotations(path, TAG_LISTS)
    names = {category["id"]: category["name"] for category in content["categories"]}
    tags: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
    with input_errors(f"{path}: an annotation of an image or category that is not in the file: ", KeyError):
        for item in content["annotations"]:
            tags[item["image_id"]].append(names[item["category_id"]])
    return [(f"{path} (image {image['id']})", {"image": image["file_name"], "labels": tags[image["id"]]})
            for image in content["images"]]


def fiftyone(path: Path, content: dict, _: object) -> Iterator[Record]:
    """FiftyOne's labels.json: image -> a label, a list of labels or null.

    A label is a name, a number that counts in the list `classes`, or an object of these. InputError: a number
    that is not in that list.
    """
    classes = content.get("classes") or []
    if not isinstance(classes, list):
        raise InputError(f"{path}: `classes` is not a list of names")
    for image, value in content["labels"].items():
        labels = []
        for item in value if isinstance(value, list) else [value]:
            label = item.get("label") if isinstance(item, dict) else item
            if isinstance(label, int) and not isinstance(label, bool):
                if not 0 <= label < len(classes):
                    raise InputError(f"{path}: image {image} has class {label}, but `classes` has "
                                     f"{len(classes)} names")
                label = classes[label]
            if label is not None:
                labels.append(label)
        yield f"{path} (image {image})", {"image": image, "labels": labels}


def cvat(path: Path, root: ElementTree.Element, _: object) -> Iterator[Record]:
    """CVAT for images 1.1: the labels of each image's tags, and of the shapes that are drawn on it.

    InputError: a file of CVAT for video, which has tracks in place of images.
    """
    if root.find("track") is not None:
        raise InputError(f"{path}: CVAT for video; export it as CVAT for images 1.1")
    for number, image in enumerate(root.iter("image")):
        labels = [item.get("label") for item in image if item.get("label")]
        subset = image.get("subset") or "default"
        split = "train" if subset.lower() == "default" else SPLITS.get(subset.lower(), subset)
        yield (f"{path} (image {image.get('id', number)})",
               {"image": image.get("name", ""), "labels": labels, "split": split})


def voc(path: Path, root: ElementTree.Element, _: object) -> list[Record]:
    """One image's annotation of VOC or LabelImg. The image is called as the XML file, as LabelImg does."""
    return [(str(path), {"image": path.stem, "labels": sorted(object_names(root))})]


def npy(path: Path, _: object, classes: Sequence[str] | None) -> list[Record]:
    """IRN's cls_labels.npy: image -> array of 0 and 1, one for each line of classes.txt."""
    if classes is None:
        raise InputError(f"{path}: its columns have no names; write the file classes.txt with one class a "
                         "line, in the order of the columns")
    return [(f"{path} (image {image})", {"image": image, "labels": [classes[number] for number in numbers]})
            for image, numbers in read_class_labels(path, len(classes)).items()]


FORMATS = (  # the first row that fits is taken
    TagFormat("cls_labels.npy of IRN, CLIMS, WeakTr", "npy", set(), npy),
    TagFormat("CVAT for images 1.1", "xml", {"annotations"}, cvat),
    TagFormat("VOC, LabelImg", "xml", {"annotation"}, voc),
    TagFormat("COCO", "object", {"annotations"}, coco),
    TagFormat("FiftyOneImageClassificationDataset", "object", {"labels"}, fiftyone),
    TagFormat("Label Studio JSON-MIN, CSV", "records", {"annotation_id", "annotator"}, label_studio),
    TagFormat("Label Studio JSON", "records", {"annotations", "data"}, label_studio_whole),
    TagFormat("FiftyOne CSV", "records", {"filepath"}, fiftyone_columns),
    TagFormat("columns", "records", set(), columns),
)
