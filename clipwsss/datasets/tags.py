"""Tables of tags in the forms of tag_formats.py, as rows: an image, its classes and its split."""
import ast
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import InputError, input_errors
from ..files import nfc
from .tag_formats import IMAGE_COLUMNS, LABEL_COLUMNS, MARKS, lower_case, named_fields, read_records

TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xml", ".npy")  # suffixes of a table of tags


class TagRow(NamedTuple):
    """An image as the table names it, its classes, its split and the place in the table, "file:line".

    is_text: the labels were one text, in which blanks may separate them.
    """
    image: str
    labels: set[str]
    split: str
    where: str
    is_text: bool = False


class TagTable(NamedTuple):
    """The good rows of a table, a line for each bad one, the images of bad rows, and notes for the user."""
    rows: list[TagRow]
    problems: list[str]
    spoiled: set[str]
    notes: list[str]


def read_tags(path: Path, classes: Sequence[str] | None = None, split: str = "train") -> TagTable:
    """The table of tags in a file; InputError if no row is good. An image may have several rows.

    classes: the user's, where there is a list of them. split: of images for which the table names none.

    CSV, separated by `,`, `;`, `|` or tabs as its first line is, has a column for the image and one of these:
    - a column of labels: names of classes, separated by `;`, `,`, `|` or, see `separate_words`, blanks;
    - a column for each class, of 1 and 0;
    - nothing else: the class is then the folder in the image's path.
    JSON has objects of these keys, one in each line or all in a list. tag_formats.py names the columns and
    the other forms.
    """
    rows = []
    problems = []
    spoiled = set()
    for where, fields in read_records(path, classes):
        try:
            rows.append(row_of(fields, where, split))
        except ValueError as error:
            problems.append(f"{where}: {error}")
            spoiled.add(image_of(fields))
    if not rows:
        raise InputError(problems[0] if problems else f"{path}: no image is listed", problems)
    rows, example = separate_words(rows, classes)
    notes = [f"note: {path}: blanks separate the labels, as in {example!r}"] if example else []
    return TagTable(rows, problems, spoiled - {""}, notes)


def image_of(fields: object) -> str:
    """The image that a record names, however bad its other fields are; "" if it names none."""
    spelled = lower_case(fields)
    images = [str(spelled[name]).strip() for name in IMAGE_COLUMNS if name in spelled]
    return images[0] if images else ""


def row_of(fields: object, where: str, split: str = "train") -> TagRow:
    """The row of a record's fields (a dictionary or its JSON); ValueError says what is wrong with them."""
    if isinstance(fields, str):
        with input_errors("not JSON: ", ValueError, RecursionError):
            fields = json.loads(fields)
    if not isinstance(fields, dict):
        raise ValueError('expected {"image": "one.jpg", "labels": ["cat"]}')
    if None in fields or None in fields.values():
        raise ValueError("a value is missing, or there are too many (separate labels by ;)")
    certain = is_certain(fields)
    fields = named_fields(fields)
    image = str(fields.pop("image", "")).strip()
    if not image:
        raise ValueError("no image is named")
    if "split" in fields:
        split = str(fields.pop("split")).strip()
        if not split:
            raise ValueError(f"image {image} has no split")
    if "labels" in fields:
        fields["labels"] = python_list(fields["labels"])
    is_text = isinstance(fields.get("labels"), str)
    if not fields:
        labels = [PurePosixPath(image.replace("\\", "/")).parent.name]
    elif "labels" in fields:
        labels = split_labels(fields["labels"]) if certain else []
    else:
        labels = marked_classes(fields)
    return TagRow(image, {nfc(name.strip()) for name in labels} - {""}, split, where, is_text)


def is_certain(fields: dict[str, object]) -> bool:
    """Whether a record's labels are there: its `confidence` is not 0, as Open Images has it for people's no.

    Where classes have columns, `confidence` is a class. ValueError: neither 1 nor 0, which is a machine's.
    """
    spelled = lower_case(fields)
    mark = str(spelled.get("confidence", "1")).strip().lower()
    if not any(name in spelled for name in LABEL_COLUMNS):
        return True
    if not mark or mark not in MARKS:
        raise ValueError(f"confidence {mark} is a machine's guess; take the labels that people have "
                         "verified, of confidence 1 and 0, or delete the column and the rows that are wrong")
    return MARKS[mark]


def python_list(labels: object) -> object:
    """The list in a text such as "['cat', 'dog']", as pandas writes lists into CSV; others unchanged.

    Arrays of numpy are written without commas, ['cat' 'dog'], which Python would read as one name.
    """
    if isinstance(labels, str) and labels.strip().startswith("[") and labels.strip().endswith("]"):
        text = re.sub(r"(?<=['\"])\s+(?=['\"])", ", ", labels.strip())
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return ast.literal_eval(text)
    return labels


def split_labels(labels: object) -> list[str]:
    """The names in a column of labels: a list, or a text that separates them by `;`, `,` or `|`.

    ValueError: neither a text nor a list of texts.
    """
    if isinstance(labels, str):
        return re.split("[;,|]", labels)
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise ValueError(f"labels are {labels!r}, not a list of names")
    return labels


def separate_words(rows: list[TagRow], classes: Sequence[str] | None) -> tuple[list[TagRow], str | None]:
    """(rows whose labels are separated at blanks where blanks separate labels, the first such text or None).

    A class may be called `hot dog`. A text with blanks is a list of labels if it is no class itself and all
    its words are `classes`; where these are not known, if the table has fewer words than different texts.
    """
    texts = set().union(*(row.labels for row in rows if row.is_text))
    words = {word for text in texts for word in text.split()}
    lists = {text for text in texts if len(text.split()) > 1}
    if classes is not None:
        lists = {text for text in lists - set(classes) if set(text.split()) <= set(classes)}
    elif len(words) >= len(texts):
        lists = set()
    separated = []
    for row in rows:
        labels = row.labels
        if row.is_text and labels & lists:
            labels = labels - lists | {word for text in labels & lists for word in text.split()}
        separated.append(row._replace(labels=labels))
    return separated, min(lists, default=None)


def marked_classes(fields: dict[str, object]) -> list[str]:
    """The classes whose columns hold 1; ValueError where a column holds neither 1 nor 0."""
    labels = []
    for name, value in fields.items():
        mark = str(value).strip().lower()
        if mark not in MARKS:
            raise ValueError(f"{name} is {value!r}; the column of a class holds 1 or 0, and a column of "
                             f"names must be called labels (or {', '.join(LABEL_COLUMNS[1:])})")
        if MARKS[mark]:
            labels.append(name)
    return labels
