"""Tables of tags: CSV in three forms, JSON lines or lists, COCO's JSON. The content shows which one it is."""
import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import InputError, input_errors
from ..files import nfc, read_text
from .coco import LISTS, read_annotations

TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl")  # suffixes that a table of tags may have
COLUMNS = {"image": "image", "file_name": "image", "filename": "image", "file": "image",
           "split": "split",
           "labels": "labels", "label": "labels", "tags": "labels"}
MARKS = {"1": True, "1.0": True, "true": True,  # values in a class's column
         "0": False, "0.0": False, "-1": False, "false": False, "": False}
TAG_LISTS = LISTS | {"images": {"id", "file_name"}, "annotations": {"image_id", "category_id"}}
Record = tuple[str, object]  # a place, "file:line", and its fields by name or a line of JSON


class TagRow(NamedTuple):
    """An image as the table names it, its classes, its split and the place in the table, "file:line"."""
    image: str
    labels: set[str]
    split: str
    where: str


def read_tags(path: Path) -> tuple[list[TagRow], list[str], set[str]]:
    """(the good rows, a line for each bad one, the images of bad rows); InputError if no row is good.

    An image may have several rows.

    CSV, separated by `,`, `;` or tabs as its first line is, has a column `image` and one of these:
    - a column `labels`: names of classes, separated by `;` or `,`;
    - a column for each class, of 1 and 0;
    - nothing else: the class is then the folder in the image's path.
    A column `split` may be there; without it all images belong to `train`.
    JSON has objects of these keys, one in each line or all in a list, or it is COCO's file of images,
    annotations and categories, whose regions are not read.
    `file_name`, `filename` and `file` may stand for `image`, `label` and `tags` for `labels`.
    """
    text = read_text(path)
    is_json = text.lstrip()[:1] in ("{", "[")
    rows = []
    problems = []
    spoiled = set()
    for where, fields in json_records(path, text) if is_json else csv_records(path, text):
        try:
            rows.append(row_of(fields, where))
        except ValueError as error:
            problems.append(f"{where}: {error}")
            spoiled.add(image_of(fields))
    if not rows:
        raise InputError(problems[0] if problems else f"{path}: no image is listed", problems)
    return rows, problems, spoiled - {""}


def image_of(fields: object) -> str:
    """The image that a record names, however bad its other fields are; "" if it names none."""
    if isinstance(fields, dict):
        for name, value in fields.items():
            if name is not None and COLUMNS.get(name.strip().lower()) == "image":
                return str(value).strip()
    return ""


def row_of(fields: object, where: str) -> TagRow:
    """The row of a record's fields (a dictionary or its JSON); ValueError says what is wrong with them."""
    if isinstance(fields, str):
        with input_errors("not JSON: "):
            fields = json.loads(fields)
    if not isinstance(fields, dict):
        raise ValueError('expected {"image": "one.jpg", "labels": ["cat"]}')
    if None in fields or None in fields.values():
        raise ValueError("a value is missing, or there are too many (separate labels by ;)")
    fields = {COLUMNS.get(name.strip().lower(), name.strip()): value for name, value in fields.items()}
    image = str(fields.pop("image", "")).strip()
    split = str(fields.pop("split", "train")).strip()
    if not image:
        raise ValueError("no image is named")
    if not split:
        raise ValueError(f"image {image} has no split")
    if not fields:
        labels = [PurePosixPath(image.replace("\\", "/")).parent.name]
    elif "labels" in fields:
        labels = split_labels(fields["labels"])
    else:
        labels = marked_classes(fields)
    return TagRow(image, {nfc(name.strip()) for name in labels} - {""}, split, where)


def split_labels(labels: object) -> list[str]:
    """The names in a column `labels`: a list, or a text that separates them by `;` or `,`.

    ValueError: neither a text nor a list of texts.
    """
    if isinstance(labels, str):
        return re.split("[;,]", labels)
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise ValueError(f"labels are {labels!r}, not a list of names")
    return labels


def marked_classes(fields: dict[str, object]) -> list[str]:
    """The classes whose columns hold 1; ValueError where a column holds neither 1 nor 0."""
    labels = []
    for name, value in fields.items():
        mark = str(value).strip().lower()
        if mark not in MARKS:
            raise ValueError(f"{name} is {value!r}; the column of a class holds 1 or 0, and a column of "
                             "names must be called labels")
        if MARKS[mark]:
            labels.append(name)
    return labels


def csv_records(path: Path, text: str) -> Iterator[Record]:
    """The record of each line that is not empty; InputError if the first line has none of the known forms."""
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    names = [COLUMNS.get(name.strip('" \r').lower()) for name in first.split(delimiter)]
    if len(names) > 1 and "image" not in names:
        raise InputError(f"{path}:1: the first line must be `image,labels`, `image,labels,split` or `image` "
                         f"and a column for each class, it is {first.strip()!r}")
    header = None if "image" in names else ["image"]  # a single column may lack its name
    lines = text.splitlines(keepends=True)
    reader = csv.DictReader(lines, header, delimiter=delimiter, skipinitialspace=True)
    with input_errors(f"{path}: ", csv.Error):
        for fields in reader:
            if any(fields.values()):
                yield f"{path}:{reader.line_num}", fields


def json_records(path: Path, text: str) -> Iterable[Record]:
    """The records of a list of objects, of lines of objects, or of COCO's file."""
    content = None
    with suppress(ValueError):  # lines of objects are not one JSON value
        content = json.loads(text)
    if isinstance(content, list):
        return [(f"{path}: [{number}]", item) for number, item in enumerate(content)]
    if isinstance(content, dict) and "annotations" in content:
        return coco_records(path)
    return [(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def coco_records(path: Path) -> list[Record]:
    """The images of an annotation file with the names of their annotations' categories."""
    content = read_annotations(path, TAG_LISTS)
    names = {category["id"]: category["name"] for category in content["categories"]}
    tags: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
    with input_errors(f"{path}: an annotation of an image or category that is not in the file: ", KeyError):
        for item in content["annotations"]:
            tags[item["image_id"]].append(names[item["category_id"]])
    return [(f"{path} (image {image['id']})", {"image": image["file_name"], "labels": tags[image["id"]]})
            for image in content["images"]]
