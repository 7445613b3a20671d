"""A user's own images and tags: images/, labels.csv, classes.txt and, where there are any, masks/."""
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..files import read_text
from .base import MOST_PIXELS, Entry, TagDataset, files_of, split_error
from .tags import TABLES, TagRow, read_tags

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MOST_CLASSES = 254  # masks have 8 bits: 0 is the background and 255 is ignored


class FolderDataset(TagDataset):
    """Images below `root` and a table of their tags.

    images/: the images, also in folders, turned as their EXIF tags say. An image's name is that of its file
    without the extension. labels.csv (.tsv, .txt, .json, .jsonl): the table, see `read_tags`; if there is
    none, the name of an image's folder is its class. classes.txt: a line `class` or `class: synonym, synonym`
    for each class, in the order of their numbers. masks/NAME.png: masks, of some images or all.
    """
    oriented = True

    def __init__(self, root: Path | str, split: str, skip_bad: bool = False, max_pixels: int = MOST_PIXELS):
        root = Path(root)
        if not root.is_dir():
            raise InputError(f"--data-root {root}: no such folder")
        stored = images_below(root / "images")
        masks = {path.stem: path for path in files_of(root / "masks", optional=True)}
        rows, problems = read_table(root, stored)
        synonyms = read_classes_of(root, rows)
        self.classes = list(synonyms)
        splits = sorted({row.split for row in rows})
        if split not in splits:
            raise split_error(split, splits, root)
        by_name = files_by_name(root, stored)
        entries = []
        for row in rows:
            if row.split != split:
                continue
            try:
                path = find_image(row, by_name)
                tags = self.class_numbers(row.labels, row.where)
                entries.append(Entry(path.stem, path, tags, masks.get(path.stem), row.where))
            except InputError as error:
                problems.append(str(error))
        notes = []
        lost = sorted(masks.keys() - {path.stem for path in stored})
        if lost:
            notes = [f"{masks[lost[0]]}: belongs to no image and is not used ({len(lost)} such masks)"]
        super().__init__(entries, problems, splits, skip_bad, max_pixels, synonyms, notes)


def images_below(folder: Path) -> list[Path]:
    """The image files of a folder and of all visible folders in it, sorted; InputError if it is missing."""
    folders = {folder}
    for place, subfolders, _ in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        folders.add(Path(place))
    return [path for place in sorted(folders) for path in files_of(place, SUFFIXES)]


def read_table(root: Path, stored: Sequence[Path]) -> tuple[list[TagRow], list[str]]:
    """`read_tags` of the one table labels.* in `root`; without one, images' folders are their classes.

    InputError: several tables, a table without a good row, or no table though images lie in no folder.
    """
    tables = [path for path in files_of(root, TABLES) if path.stem == "labels"]
    if len(tables) > 1:
        raise InputError(f"{tables[0]} and {tables[1].name}: both exist; keep one of them")
    if tables:
        return read_tags(tables[0])
    if any(path.parent == root / "images" for path in stored):
        raise InputError(f"{root / 'labels.csv'}: no such file; write one, or put each image into a folder "
                         "named after its class")
    return [TagRow(path.name, {path.parent.name}, "train", str(path)) for path in stored], []


def read_classes_of(root: Path, rows: Sequence[TagRow]) -> dict[str, list[str]]:
    """`read_classes` of classes.txt in `root`; InputError for a bad file, or for a missing one.

    The error for a missing file lists the classes of the table.
    """
    path = root / "classes.txt"
    if not path.is_file():
        names = sorted(set().union(*(row.labels for row in rows)))
        raise InputError(f"{path}: no such file; write one class a line (the tags name {', '.join(names)})")
    return read_classes(path)


def files_by_name(root: Path, stored: Sequence[Path]) -> dict[str, list[Path]]:
    """What a table may call an image -> the files that are meant.

    An image is called by its path below `root` or below images/, by its file name, or without extension;
    files of one name without extension are one list: results are saved by that name.
    """
    by_name: dict[str, list[Path]] = {}
    for path in stored:
        same = by_name.setdefault(path.stem, [])
        same.append(path)
        by_name[path.name] = same
        by_name[path.relative_to(root).as_posix()] = same
        by_name[path.relative_to(root / "images").as_posix()] = same
    return by_name


def find_image(row: TagRow, by_name: dict[str, list[Path]]) -> Path:
    """The file that a row of the table names; InputError if there is none, or several of one name."""
    files = by_name.get(row.image.replace("\\", "/"), [])
    if not files:
        raise InputError(f"{row.where}: image {row.image!r} is not in the folder images "
                         f"({', '.join(SUFFIXES)})")
    if len(files) > 1:
        raise InputError(f"{row.where}: {' and '.join(path.name for path in files)} have the same name, but "
                         "results are saved by name")
    return files[0]


def read_classes(path: Path) -> dict[str, list[str]]:
    """Class -> its synonyms, in the order of the file; InputError names a bad line."""
    classes: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        before, _, after = line.partition(":")
        name = before.strip()
        problem = None
        if not name or name.startswith("#") or ";" in name or "," in name:
            problem = f"{line.strip()!r} is not a class; write `class` or `class: synonym, synonym`"
        elif name == "background":
            problem = "leave background out: it is always number 0"
        elif name in classes:
            problem = f"{name} is listed twice"
        if problem:
            raise InputError(f"{path}:{number}: {problem}")
        classes[name] = [word.strip() for word in after.split(",") if word.strip()]
    if not 0 < len(classes) <= MOST_CLASSES:
        raise InputError(f"{path}: {len(classes)} classes; 1 to {MOST_CLASSES} are possible")
    return classes
