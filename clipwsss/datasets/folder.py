"""A user's own images and tags: images/, labels.csv, classes.txt, and masks/ if there are any."""
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .base import Entry, TagDataset, files_of, masks_of, split_error
from .reading import Checked
from .tags import TABLES, TagRow, read_tags, read_text

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MOST_CLASSES = 254  # masks are 8-bit: 0 is background and 255 ignored


class FolderDataset(TagDataset):
    """Images tagged in a table below `root`.

    images/: images, also in folders, turned as the EXIF tag says; names are file names without extension.
    labels.csv (.tsv, .txt, .json, .jsonl): see `read_tags`; without one an image's folder is its class.
    classes.txt: `class` or `class: synonym, synonym` a line, in the order of the numbers. masks/NAME.png.
    """
    oriented = True

    def __init__(self, root: Path | str, split: str, skip_bad: bool = False, checked: Checked | None = None):
        root = Path(root)
        if not root.is_dir():
            raise InputError(f"--data-root {root}: no such folder")
        stored, masks = images_below(root / "images"), masks_of(root / "masks")
        rows, problems = read_table(root, stored)
        if not (root / "classes.txt").is_file():
            names = sorted(set().union(*(row.labels for row in rows)))
            raise InputError(f"{root / 'classes.txt'}: no such file; write one class a line (the tags name "
                             f"{', '.join(names)})")
        synonyms = read_classes(root / "classes.txt")
        self.classes = list(synonyms)
        splits = sorted({row.split for row in rows})
        if split not in splits:
            raise split_error(split, splits, root)
        places: dict[str, list[Path]] = {}  # by path, name and name without suffix
        for path in stored:
            same = places.setdefault(path.stem, [])
            same.append(path)
            places |= dict.fromkeys((path.name, path.relative_to(root).as_posix(),
                                     path.relative_to(root / "images").as_posix()), same)
        entries = []
        for row in rows:
            if row.split == split:
                try:
                    path = find_image(row, places)
                    tags = self._numbers(row.labels, row.where)
                    entries.append(Entry(path.stem, path, tags, masks.get(path.stem), row.where))
                except InputError as error:
                    problems.append(str(error))
        lost = sorted(masks.keys() - {path.stem for path in stored})
        notes = [f"{masks[lost[0]]}: belongs to no image, not used ({len(lost)} such masks)"] if lost else []
        super().__init__(entries, problems, splits, skip_bad, synonyms, notes, checked)


def images_below(folder: Path) -> list[Path]:
    """The image files of a folder and of the visible ones in it, in order; InputError without the folder."""
    inside = [Path(name) for name, *_ in os.walk(folder) if f"{os.sep}." not in name[len(str(folder)):]]
    return [path for place in sorted({folder, *inside}) for path in files_of(place, SUFFIXES)]


def read_table(root: Path, stored: Sequence[Path]) -> tuple[list[TagRow], list[str]]:
    """`read_tags` of the one table labels.* below `root`; without one images' folders are their classes."""
    tables = [path for path in files_of(root, TABLES) if path.stem == "labels"]
    if len(tables) > 1:
        raise InputError(f"{tables[0]} and {tables[1].name}: both are there, keep one of them")
    if not tables and all(path.parent.name != "images" for path in stored):
        return [TagRow(path.name, {path.parent.name}, "train", str(path)) for path in stored], []
    return read_tags(tables[0] if tables else root / "labels.csv")


def find_image(row: TagRow, places: dict[str, list[Path]]) -> Path:
    """The one file that a row names; InputError for none or several of one name."""
    files = places.get(row.image.replace("\\", "/"), [])
    if not files:
        raise InputError(f"{row.where}: image {row.image!r} is not in the folder images "
                         f"({', '.join(SUFFIXES)})")
    if len(files) > 1:
        raise InputError(f"{row.where}: {' and '.join(path.name for path in files)} share one name, which "
                         "results are saved by")
    return files[0]


def read_classes(path: Path) -> dict[str, list[str]]:
    """Class -> its synonyms in the file's order; InputError names a bad line."""
    classes: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        name, _, rest = (part.strip() for part in line.partition(":"))
        if not line.strip():
            continue
        if not name or name.startswith("#") or ";" in name or "," in name:
            problem = f"{line.strip()!r} is no class; write `class` or `class: synonym, synonym`"
        elif name == "background":
            problem = "background is not to be listed: it is number 0 by itself"
        else:
            problem = f"{name} is listed twice" if name in classes else None
        if problem:
            raise InputError(f"{path}:{number}: {problem}")
        classes[name] = [word.strip() for word in rest.split(",") if word.strip()]
    if not 0 < len(classes) <= MOST_CLASSES:
        raise InputError(f"{path}: {len(classes)} classes; 1 to {MOST_CLASSES} are possible")
    return classes
