"""A user's own images and tags: images/, labels.csv, classes.txt and, where there are any, masks/."""
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import nfc
from ..run import digest, fingerprint
from .base import Entry, TagDataset, split_error
from .coco import draw_mask
from .folder_files import (image_folders, missing_classes, read_classes, read_table, stored_images,
                           visible_files)
from .image_files import MOST_PIXELS, files_of, read_labelmap
from .image_names import ImageNames, may_be_one
from .instance_masks import read_instance_masks
from .tags import TagRow, TagTable

LABELMAP = "labelmap.txt"


class FolderDataset(TagDataset):
    """Images below `root` and a table of their tags.

    images/: the images, also in folders, turned as their EXIF tags say. An image's name is that of its file
    without the extension. Without images/, see `image_folders`. The table: labels.csv or another, see
    `find_tables` and `read_tags`; if there is none, the name of an image's folder is its class. classes.txt:
    a line `class` or `class: synonym, synonym` for each class, in the order of their numbers. masks/NAME.png:
    masks, of some images or all; or one masks/*.json, COCO's instances file. masks/labelmap.txt: the colours
    of the classes, as CVAT writes them; VOC's unless it is there.

    unused_masks: (file, why it is not used) of each other file in masks/.
    """
    oriented = True

    def __init__(self, root: Path | str, split: str, skip_bad: bool = False, max_pixels: int = MOST_PIXELS):
        root = Path(root)
        if not root.is_dir():
            raise InputError(f"--data-root {root}: no such folder")
        stored = stored_images(root)
        masks, self.unused_masks = sort_masks(root / "masks", stored)
        listed = (root / "classes.txt").is_file()
        synonyms = read_classes(root / "classes.txt") if listed else {}
        table = read_table(root, list(synonyms) if listed else None)
        if not listed:
            raise InputError(missing_classes(root, table))
        self.classes = list(synonyms)
        if (root / "masks" / LABELMAP).is_file():
            self.palette = read_labelmap(root / "masks" / LABELMAP, self.classes)
        splits = sorted({row.split for row in table.rows})
        if split not in splits:
            raise split_error(split, splits, root)
        rows = [row for row in table.rows if row.split == split]
        names = ImageNames((root, *image_folders(root)), stored)
        joined = self._join_rows(rows, names, table)
        entries = []
        for file, own_rows in joined.items():
            tags = self.class_numbers(set().union(*(row.labels for row in own_rows)), own_rows[0].where)
            name = nfc(file.stem)
            entries.append(Entry(name, file, tags, masks.get(name), own_rows[0].where))
        notes = list(table.notes)
        several = sum(len(own_rows) > 1 for own_rows in joined.values())
        if several:
            notes.append(f"note: {several} of {len(joined)} images have several rows in the table; their "
                         "tags are joined")
        self.annotations = sole_annotations(root / "masks")
        self.drawn = {}  # image name -> (its stated size, its regions)
        if self.annotations:
            if masks:
                raise InputError(f"{self.annotations}: the folder also has PNG masks; keep one of both")
            self.drawn, other_notes = read_instance_masks(self.annotations, self.classes, set(names.by_name))
            notes += other_notes
        super().__init__(entries, table.problems, splits, skip_bad, max_pixels, synonyms, notes)
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
            return draw_mask(self.drawn[name][1], self.sizes[index])
        return super().load_mask(index)

    def fingerprint(self) -> str:
        """That of the base class, with the bytes at the end of COCO's instances file, if there is one."""
        plain = super().fingerprint()
        return digest([plain, fingerprint(self.annotations)]) if self.annotations else plain

    def _join_rows(self, rows: Sequence[TagRow], names: ImageNames,
                   table: TagTable) -> dict[Path, list[TagRow]]:
        """The good rows of each image; what is wrong, or only similar, is added to the table's lines.

        An image may have several rows, such as one for each tag. Where one of them is bad, the others tell
        only a part of its tags: the image is left out. So it is where two rows call it differently, because
        they may mean two images, of which one is missing.
        """
        spoiled: set[Path] = set()
        for image in table.spoiled:
            with suppress(InputError):
                spoiled.add(names.find(image)[0])
        joined: dict[Path, list[TagRow]] = {}
        similar: dict[Path, str] = {}
        called: dict[Path, TagRow] = {}  # the first row of each image
        for row in rows:
            try:
                file, is_exact = names.find(row.image)
            except InputError as error:
                table.problems.append(f"{row.where}: {error}")
                continue
            if not is_exact:
                similar[file] = f"{row.where}: {row.image!r} is {file.name}"
            before = called.setdefault(file, row)
            if not may_be_one(before.image, row.image):
                table.problems.append(f"{row.where}: image {row.image!r} may be {file.name}, which "
                                      f"{before.where} calls {before.image!r}; call one image by one name")
                spoiled.add(file)
                continue
            try:
                self.class_numbers(row.labels, row.where)
            except InputError as error:
                table.problems.append(str(error))
                spoiled.add(file)
                continue
            joined.setdefault(file, []).append(row)
        for file in sorted(spoiled & joined.keys()):
            where = joined.pop(file)[0].where
            table.problems.append(f"{where}: image {file.name} is left out, because another of its rows is "
                                  "bad")
        if similar:
            table.notes.append(f"note: the table names {len(similar)} of {len(joined)} images by another "
                               f"path or spelling, such as {next(iter(similar.values()))}")
        return joined


def unused_note(dataset: FolderDataset) -> list[str]:
    """The note of the scripts on files in the folder of masks that are not used, if there are any."""
    if not dataset.unused_masks:
        return []
    path, reason = dataset.unused_masks[0]
    more = f"; {len(dataset.unused_masks)} files there are not used" if len(dataset.unused_masks) > 1 else ""
    return [f"note: {path}: is not used, because {reason}{more}"]


def sole_annotations(folder: Path) -> Path | None:
    """The one JSON file of a folder of masks, if it has one; InputError for several."""
    files = files_of(folder, (".json",), optional=True)
    if len(files) > 1:
        raise InputError(f"{files[0]} and {files[1].name}: masks come from one instances file; keep one of "
                         "them")
    return files[0] if files else None


def sort_masks(folder: Path, stored: Sequence[Path]) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """(image name -> its mask, (file, why it is not used) of every other file of the folder of masks)."""
    names = {nfc(path.stem) for path in stored}
    spelled = {name.lower(): name for name in names}
    masks: dict[str, Path] = {}
    unused = []
    for path in visible_files(folder):
        name = nfc(path.stem)
        if path.parent != folder:
            unused.append((path, f"masks lie in the folder {folder.name}, not below it"))
        elif path.suffix.lower() == ".json" or path.name == LABELMAP:
            continue  # COCO's instances file, see `sole_annotations`, and the colours of the classes
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
