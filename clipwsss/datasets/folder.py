"""A user's own images and tags: images/, labels.csv, classes.txt and, where there are any, masks/."""
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import nfc, read_text, utf8_name
from ..run import digest, fingerprint
from .base import Entry, TagDataset, files_of, split_error
from .images import MOST_PIXELS
from .instance_masks import draw_instance_mask, read_instance_masks
from .label_maps import refuse_many_classes
from .tags import TABLES, TagRow, read_tags

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # which a file manager leaves in folders of pictures


class FolderDataset(TagDataset):
    """Images below `root` and a table of their tags.

    images/: the images, also in folders, turned as their EXIF tags say. An image's name is that of its file
    without the extension. labels.csv (.tsv, .txt, .json, .jsonl): the table, see `read_tags`; if there is
    none, the name of an image's folder is its class. classes.txt: a line `class` or `class: synonym, synonym`
    for each class, in the order of their numbers. masks/NAME.png: masks, of some images or all;
    or one masks/*.json, COCO's instances file.

    unused_masks: (file, why it is not used) of each other file in masks/.
    """
    oriented = True

    def __init__(self, root: Path | str, split: str, skip_bad: bool = False, max_pixels: int = MOST_PIXELS):
        root = Path(root)
        if not root.is_dir():
            raise InputError(f"--data-root {root}: no such folder")
        stored = images_below(root / "images")
        masks, self.unused_masks = sort_masks(root / "masks", stored)
        rows, problems, bad_rows = read_table(root, stored)
        synonyms = read_classes_of(root, rows)
        self.classes = list(synonyms)
        splits = sorted({row.split for row in rows})
        if split not in splits:
            raise split_error(split, splits, root)
        by_name = files_by_name(root, stored)
        rows = [row for row in rows if row.split == split]
        spoiled = {file for image in bad_rows for file in by_name.get(nfc(image), [])}
        joined = self._join_rows(rows, by_name, spoiled, problems)
        entries = []
        for file, own_rows in joined.items():
            tags = self.class_numbers(set().union(*(row.labels for row in own_rows)), own_rows[0].where)
            name = nfc(file.stem)
            entries.append(Entry(name, file, tags, masks.get(name), own_rows[0].where))
        notes = []
        several = sum(len(own_rows) > 1 for own_rows in joined.values())
        if several:
            notes.append(f"note: {several} of {len(joined)} images have several rows in the table; their "
                         "tags are joined")
        self.annotations = sole_annotations(root / "masks")
        self.drawn = {}  # image name -> (its stated size, its regions)
        if self.annotations:
            if masks:
                raise InputError(f"{self.annotations}: the folder also has PNG masks; keep one of both")
            self.drawn, other_notes = read_instance_masks(self.annotations, self.classes, set(by_name))
            notes += other_notes
        super().__init__(entries, problems, splits, skip_bad, max_pixels, synonyms, notes)
        self._use_drawn_masks()

    def _use_drawn_masks(self) -> None:
        """Count images with regions as masked; InputError where one has another size than stated."""
        if not self.drawn:
            return
        for name, size in zip(self.names, self.sizes):
            stated = self.drawn.get(name, (size,))[0]
            if stated != size:
                found = f"{size[0]} x {size[1]}"
                raise InputError(f"{self.annotations}: says {stated[0]} x {stated[1]} (H x W) for image "
                                 f"{name}, which is {found}")
        self.masked = [name in self.drawn for name in self.names]
        self.has_masks = any(self.masked)

    def load_mask(self, index: int) -> np.ndarray | None:
        """The mask drawn from COCO's instances file, or that of the base class."""
        name = self.names[index]
        if self.entries[index].mask is None and name in self.drawn:
            return draw_instance_mask(self.drawn[name][1], self.sizes[index])
        return super().load_mask(index)

    def fingerprint(self) -> str:
        """That of the base class, with the bytes at the end of COCO's instances file, if there is one."""
        plain = super().fingerprint()
        return digest([plain, fingerprint(self.annotations)]) if self.annotations else plain

    def _join_rows(self, rows: Sequence[TagRow], by_name: dict[str, list[Path]], spoiled: set[Path],
                   problems: list[str]) -> dict[Path, list[TagRow]]:
        """The good rows of each image; what is wrong is added to `problems`.

        An image may have several rows, such as one for each tag. Where one of them is bad, as for the images
        `spoiled`, the others tell only a part of its tags: the image is left out.
        """
        joined: dict[Path, list[TagRow]] = {}
        for row in rows:
            try:
                file = find_image(row, by_name)
            except InputError as error:
                problems.append(str(error))
                continue
            try:
                self.class_numbers(row.labels, row.where)
            except InputError as error:
                problems.append(str(error))
                spoiled.add(file)
                continue
            joined.setdefault(file, []).append(row)
        for file in sorted(spoiled & joined.keys()):
            where = joined.pop(file)[0].where
            problems.append(f"{where}: image {file.name} is left out, because another of its rows is bad")
        return joined


def sole_annotations(folder: Path) -> Path | None:
    """The one JSON file of a folder of masks, if it has one; InputError for several."""
    files = files_of(folder, (".json",), optional=True)
    if len(files) > 1:
        raise InputError(f"{files[0]} and {files[1].name}: masks come from one instances file; keep one of "
                         "them")
    return files[0] if files else None


def images_below(folder: Path) -> list[Path]:
    """The image files of a folder and of all visible folders in it, sorted; InputError if it is missing."""
    folders = {folder}
    for place, subfolders, _ in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        folders.add(Path(place))
    return [path for place in sorted(folders) for path in files_of(place, SUFFIXES)]


def sort_masks(folder: Path, stored: Sequence[Path]) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """(image name -> its mask, (file, why it is not used) of every other file of the folder of masks)."""
    names = {nfc(path.stem) for path in stored}
    spelled = {name.lower(): name for name in names}
    masks: dict[str, Path] = {}
    unused = []
    for path in visible_files(folder):
        name = nfc(path.stem)
        if path.parent != folder:
            unused.append((path, "masks lie in the folder masks, not below it"))
        elif path.suffix.lower() == ".json":
            continue  # COCO's instances file, see `sole_annotations`
        elif path.suffix.lower() != ".png":
            unused.append((path, "a mask is a PNG file NAME.png"))
        elif name in masks:
            unused.append((path, f"{masks[name].name} is the mask of this image"))
        elif name in names:
            masks[name] = path
        else:
            # A mask of a.jpg that is called a_mask.png: the name before each separator may be an image's.
            begins = [name[:end] for end, letter in enumerate(name) if letter in "_-. "] + [name]
            renamed = [f"; rename it to {spelled[begin.lower()]}.png" for begin in begins
                       if begin.lower() in spelled]
            unused.append((path, f"it belongs to no image{renamed[-1] if renamed else ''}"))
    return masks, unused


def visible_files(folder: Path) -> list[Path]:
    """All files of a folder and of the visible folders in it, sorted, without hidden and system files."""
    found = []
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(place, name) for name in names
                  if not name.startswith(".") and name.lower() not in SYSTEM_FILES]
    return sorted(found)


def read_table(root: Path, stored: Sequence[Path]) -> tuple[list[TagRow], list[str], set[str]]:
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
    rows = [TagRow(path.name, {utf8_name(path.parent.name)}, "train", str(path)) for path in stored]
    return rows, [], set()


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
        same = by_name.setdefault(nfc(path.stem), [])
        same.append(path)
        called = (path.name, path.relative_to(root).as_posix(), path.relative_to(root / "images").as_posix())
        by_name |= {nfc(name): same for name in called}
        by_name |= {utf8_name(name): same for name in (path.stem, *called)}
    return by_name


def find_image(row: TagRow, by_name: dict[str, list[Path]]) -> Path:
    """The file that a row of the table names; InputError if there is none, or several of one name."""
    name = nfc(row.image)
    files = by_name.get(name) or by_name.get(name.replace("\\", "/"), [])
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
    for number, line in enumerate(nfc(read_text(path)).splitlines(), 1):
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
    if not classes:
        raise InputError(f"{path}: no class is listed")
    refuse_many_classes(len(classes), path)
    return classes
