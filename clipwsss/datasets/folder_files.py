"""Where a folder of one's own has its images, the tables of their tags, and its list of classes."""
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import InputError
from ..files import nfc, read_text, utf8_name, write_text
from .image_files import files_of, refuse_many_classes
from .image_names import SUFFIXES, ImageNames
from .tag_formats import SPLITS
from .tags import TABLES, TagRow, TagTable, read_tags

IMAGE_FOLDERS = ("images", "data", "JPEGImages")  # the usual one, FiftyOne's and VOC's
TOOL_TABLES = ("annotations.xml", "cls_labels.npy", "cls_labels_coco.npy")  # CVAT's, IRN's and CLIMS' names
BESIDE_IMAGES = ("_classes.csv", "_annotations.csv", "_annotations.coco.json")  # Roboflow's names
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".parquet", ".feather")  # which are not read
XML_FOLDERS = ("Annotations", "annotations")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # which a file manager leaves in folders of pictures


def image_folders(root: Path) -> dict[Path, str]:
    """Folder of images -> the split of the images in it, unless a table names another.

    One of IMAGE_FOLDERS, or else the folders of `root` that are called as splits, as ImageFolder and Roboflow
    have them. InputError: none of them is there.
    """
    for name in IMAGE_FOLDERS:
        if (root / name).is_dir():
            return {root / name: "train"}
    folders = {root / name: split for name, split in SPLITS.items() if (root / name).is_dir()}
    if not folders:
        raise InputError(f"{root / 'images'}: no such folder; images lie in images/, in data/ (FiftyOne), or "
                         "in train/, val/ or valid/, and test/ (ImageFolder, Roboflow)")
    return folders


def stored_images(root: Path) -> list[Path]:
    """The images of a data set; InputError if it has no folder of images."""
    return [path for folder in image_folders(root) for path in images_below(folder)]


def images_below(folder: Path) -> list[Path]:
    """The image files of a folder and of all visible folders in it, sorted; InputError if it is missing."""
    folders = {folder}
    for place, subfolders, _ in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        folders.add(Path(place))
    return [path for place in sorted(folders) for path in files_of(place, SUFFIXES)]


def visible_files(folder: Path) -> list[Path]:
    """All files of a folder and of the visible folders in it, sorted, without hidden and system files."""
    found = []
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(place, name) for name in names
                  if not name.startswith(".") and name.lower() not in SYSTEM_FILES]
    return sorted(found)


def find_tables(root: Path) -> list[tuple[Path, str]]:
    """(table, split of images for which it names none, "" for that of their folder) of each table of tags.

    The one file labels.* or of TOOL_TABLES in `root`; or else files of BESIDE_IMAGES in the folders of
    images; or else XML files, in one of XML_FOLDERS or beside images and called as these. InputError: several
    tables in `root`.
    """
    tables = [path for path in files_of(root, TABLES) if path.stem == "labels" or path.name in TOOL_TABLES]
    if len(tables) > 1:
        raise InputError(f"{tables[0]} and {tables[1].name}: both exist; keep one of them")
    folders = image_folders(root)
    if tables:
        return [(tables[0], "train" if len(folders) == 1 else "")]
    beside = [(folder / name, split) for folder, split in folders.items() for name in BESIDE_IMAGES
              if (folder / name).is_file()]
    if beside:
        return beside
    annotations = [(path, "train") for name in XML_FOLDERS for path in visible_files(root / name)
                   if path.suffix.lower() == ".xml"]
    if annotations:
        return annotations
    stems = {nfc(path.stem) for path in stored_images(root)}
    return [(path, split) for folder, split in folders.items() for path in visible_files(folder)
            if path.suffix.lower() == ".xml" and nfc(path.stem) in stems]


def read_table(root: Path, classes: Sequence[str] | None) -> TagTable:
    """The tables of `find_tables` as one; without any, the folders in a folder of images are the classes.

    classes: the user's, where there is a list of them. InputError: no table has a good row, or there is none
    though images lie in no folder of a class.
    """
    table = TagTable([], [], set(), [])
    tables = find_tables(root)
    folders = image_folders(root)
    for path, split in tables:
        try:
            part = read_tags(path, classes, split)
        except InputError as error:
            table.problems.extend(error.problems)
            continue
        table.rows.extend(part.rows if split else with_splits(part.rows, root, folders))
        table.problems.extend(part.problems)
        table.spoiled.update(part.spoiled)
        table.notes.extend(part.notes)
    if not table.rows and tables:
        raise InputError(table.problems[0], table.problems)
    if not tables:
        for folder, split in folders.items():
            for path in images_below(folder):
                if path.parent == folder:
                    raise InputError(missing_table(root))
                labels = {utf8_name(path.relative_to(folder).parts[0])}
                table.rows.append(TagRow(path.relative_to(root).as_posix(), labels, split, str(path)))
    return table


def with_splits(rows: Sequence[TagRow], root: Path, folders: dict[Path, str]) -> list[TagRow]:
    """Rows of which those without a split get that of the folder in which their image lies."""
    names = ImageNames((root, *folders), stored_images(root))
    found = []
    for row in rows:
        split = row.split
        if not split:
            split = next(iter(folders.values()))  # also of an image that is missing, which is told later
            with suppress(InputError):
                path, _ = names.find(row.image)
                split = next(split for folder, split in folders.items() if path.is_relative_to(folder))
        found.append(row._replace(split=split))
    return found


def missing_table(root: Path) -> str:
    """The error for a folder without a table of tags; it names files that may be one."""
    others = [path.name for path in files_of(root, TABLES) if path.suffix.lower() != ".txt"]
    rename = f", rename the right one of {', '.join(others)}" if others else ""
    sheets = [path.name for path in files_of(root, SPREADSHEETS)]
    save = f", save {', '.join(sheets)} as CSV" if sheets else ""
    return (f"{root / 'labels.csv'}: no such file; write one{rename}{save}, or put each image into a "
            "folder named after its class")


def missing_classes(root: Path, table: TagTable) -> str:
    """The error for a folder without classes.txt; it lists the classes of the table."""
    names = sorted(set().union(*(row.labels for row in table.rows)))
    command = f"python -m clipwsss.datasets check {root} --write-classes"
    return (f"{root / 'classes.txt'}: no such file; write one class a line (the tags name "
            f"{', '.join(names)}), or let `{command}` write it")


def write_classes(root: Path) -> int:
    """Write classes.txt with the classes that the tags name, sorted, and return their number.

    InputError, and nothing is written: the file exists, a row of the table is bad, or a class cannot be one.
    """
    path = root / "classes.txt"
    if path.exists():
        raise InputError(f"--write-classes: {path} exists and is kept as it is; delete it first to have it "
                         "written anew")
    table = read_table(root, None)
    if table.problems:
        raise InputError(table.problems[0], table.problems)
    names = sorted(set().union(*(row.labels for row in table.rows)))
    for name in names:
        if ":" in name:
            raise InputError(f"{path} is not written: the class {name!r} has a colon; rename it in the table")
    text = "".join(f"{name}\n" for name in names)
    parse_classes(text, f"{path} is not written")
    write_text(text, path)
    return len(names)


def read_classes(path: Path) -> dict[str, list[str]]:
    """Class -> its synonyms, in the order of the file; InputError names a bad line."""
    return parse_classes(read_text(path), str(path))


def parse_classes(text: str, path: str) -> dict[str, list[str]]:
    """Class -> its synonyms in the text of classes.txt; InputError names a bad line of the file `path`."""
    classes: dict[str, list[str]] = {}
    for number, line in enumerate(nfc(text).splitlines(), 1):
        if not line.strip():
            continue
        before, _, after = line.partition(":")
        name = before.strip()
        problem = None
        if not name or name.startswith("#") or any(mark in name for mark in ";,|"):
            problem = f"{line.strip()!r} is not a class; write `class` or `class: synonym, synonym`"
        elif name == "background":
            problem = "leave background out: it is always number 0"
        elif name in classes:
            problem = f"{name} is listed twice"
        if problem:
            raise InputError(f"{path}:{number}: {problem}")
        classes[name] = [word.strip() for word in after.split(",") if word.strip()]
    if not classes:
        raise InputError(f"{path}: no class is listed")
    refuse_many_classes(len(classes), path)
    return classes
