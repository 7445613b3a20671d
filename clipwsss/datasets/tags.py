"""Tables of tags: CSV of three forms, JSON lines or lists, COCO's JSON; the content says which one it is."""
import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import InputError, input_errors
from .coco import LISTS, read_annotations

TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl")  # what a table of tags may be called
COLUMNS = {**dict.fromkeys(("image", "file_name", "filename", "file"), "image"), "split": "split",
           **dict.fromkeys(("labels", "label", "tags"), "labels")}
MARKS = {**dict.fromkeys(("1", "1.0", "true"), True), **dict.fromkeys(("0", "0.0", "-1", "false", ""), False)}
TAG_LISTS = {**LISTS, "images": {"id", "file_name"}, "annotations": {"image_id", "category_id"}}
Record = tuple[str, object]  # the place "file:line"; its fields by name, or a line of JSON


class TagRow(NamedTuple):
    """An image as the table names it, its classes, its split and the place that says so, "file:line"."""
    image: str
    labels: set[str]
    split: str
    where: str


def read_tags(path: Path) -> tuple[list[TagRow], list[str]]:
    """(the table's rows, what is wrong with others, by place); InputError where no row is good.

    CSV (`,` `;` or tab, as the first line has it) with the columns `image` and `labels` (names separated by
    `;` or `,`), or a column of 1 and 0 for each class, or `image` alone, whose folder is the class then; a
    column `split` may be there, else all is `train`. JSON: objects of these keys, one a line or in a list; or
    COCO's images, annotations and categories, whose regions are not read. `file_name`, `filename` and `file`
    stand for image, `label` and `tags` for labels.
    """
    text, rows, problems = read_text(path), [], []
    records = json_records(path, text) if text.lstrip()[:1] in ("{", "[") else csv_records(path, text)
    for where, fields in records:
        try:
            rows.append(row_of(fields, where))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if not rows:
        raise InputError(problems[0] if problems else f"{path}: no image is listed", problems)
    return rows, problems


def row_of(fields: object, where: str) -> TagRow:
    """The row of a record's fields (a dictionary or its JSON); ValueError says what is wrong with them."""
    with input_errors("not JSON: "):
        fields = json.loads(fields) if isinstance(fields, str) else fields
    if not isinstance(fields, dict):
        raise ValueError('expected {"image": "one.jpg", "labels": ["cat"]}')
    if None in fields or None in fields.values():
        raise ValueError("a value is missing, or there are too many (separate labels by ;)")
    fields = {COLUMNS.get(name.strip().lower(), name.strip()): value for name, value in fields.items()}
    image, split = str(fields.pop("image", "")).strip(), str(fields.pop("split", "train")).strip()
    if not image or not split:
        raise ValueError(f"image {image} has no split" if image else "no image is named")
    labels = fields.get("labels", [])
    if not fields:
        labels = [PurePosixPath(image.replace("\\", "/")).parent.name]
    elif "labels" not in fields:
        for name, value in fields.items():
            mark = str(value).strip().lower()
            if mark not in MARKS:
                raise ValueError(f"{name} is {value!r}; a class's column holds 1 or 0, and a column of names "
                                 "is called labels")
            labels += [name] * MARKS[mark]
    elif isinstance(labels, str):
        labels = re.split("[;,]", labels)
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise ValueError(f"labels are {labels!r}, not a list of names")
    return TagRow(image, {name.strip() for name in labels} - {""}, split, where)


def csv_records(path: Path, text: str) -> Iterator[Record]:
    """Every line's record; InputError for a first line of no known form."""
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    names = [COLUMNS.get(name.strip('" \r').lower()) for name in first.split(delimiter)]
    if len(names) > 1 and "image" not in names:
        raise InputError(f"{path}:1: the first line must be `image,labels`, `image,labels,split` or `image` "
                         f"and a column for each class, it is {first.strip()!r}")
    reader = csv.DictReader(text.splitlines(keepends=True), None if "image" in names else ["image"],
                            delimiter=delimiter, skipinitialspace=True)
    with input_errors(f"{path}: ", csv.Error):
        for fields in reader:
            if any(fields.values()):
                yield f"{path}:{reader.line_num}", fields


def json_records(path: Path, text: str) -> Iterable[Record]:
    """The records of a list or of lines of objects, or of COCO's tables."""
    content = None
    with suppress(ValueError):  # a file of lines is not one value
        content = json.loads(text)
    if isinstance(content, list):
        return [(f"{path}: [{number}]", item) for number, item in enumerate(content)]
    if isinstance(content, dict) and "annotations" in content:
        return coco_records(path)
    return [(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def coco_records(path: Path) -> list[Record]:
    """An annotation file's images with the names of their annotations' categories."""
    content = read_annotations(path, TAG_LISTS)
    names = {category["id"]: category["name"] for category in content["categories"]}
    tags: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
    with input_errors(f"{path}: an annotation of an image or category that is not in the file: ", KeyError):
        for item in content["annotations"]:
            tags[item["image_id"]].append(names[item["category_id"]])
    return [(f"{path} (image {image['id']})", {"image": image["file_name"], "labels": tags[image["id"]]})
            for image in content["images"]]


def read_text(path: Path) -> str:
    """A text file; InputError if it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte-order mark
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as UTF-8 text ({error})") from error
