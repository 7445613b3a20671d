"""A user's own images and tags: images/, labels.csv, classes.txt, and masks/ if there are any."""
import csv
from pathlib import Path

from ..errors import InputError
from .base import Entry, TagDataset, Transform, files_of, split_error
from .voc import masks_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MOST_CLASSES = 254  # masks are 8-bit: 0 is background and 255 ignored
Row = tuple[str, str, str, str]  # image, labels, split, "file:line"


class FolderDataset(TagDataset):
    """Images tagged in a table below `root`.

    images/*: any common format, turned as the EXIF tag says; names are the file names without extension.
    labels.csv: header `image,labels` (and `split`, if wanted), labels separated by `;`, extensions optional.
    classes.txt: one class a line in the order of their numbers, or `class: synonym, synonym`; no comments.
    masks/NAME.png, for as many images as there are: palette or grey, 0 background, 1..K, 255 ignore.
    Without a split column the only split is `train`, all rows; with it the splits are that column's values.
    """
    oriented = True

    def __init__(self, root: Path | str, split: str, transform: Transform | None = None,
                 skip_bad: bool = False):
        root = Path(root)
        if not root.is_dir():
            raise InputError(f"--data-root {root}: no such folder")
        synonyms = read_classes(root / "classes.txt")
        self.classes = list(synonyms)
        rows, problems = read_rows(root / "labels.csv")
        splits = sorted({row[2] for row in rows})
        if split not in splits:
            raise split_error(split, splits, root / "labels.csv")
        stored, masks = files_of(root / "images", SUFFIXES, by_stem=False), masks_of(root / "masks")
        by_stem: dict[str, list[str]] = {}
        for file in stored:
            by_stem.setdefault(Path(file).stem, []).append(file)
        entries = []
        for image, labels, _, where in (row for row in rows if row[2] == split):
            try:
                file, tags = find_image(image, stored, by_stem, where), self._tags(labels, where)
                entries.append(Entry(Path(file).stem, stored[file], tags, masks.get(Path(file).stem), where))
            except InputError as error:
                problems.append(str(error))
        lost = sorted(masks.keys() - by_stem.keys())
        notes = [f"{masks[lost[0]]}: belongs to no image, not used ({len(lost)} such masks)"] if lost else []
        super().__init__(entries, problems, splits, transform, skip_bad, synonyms=synonyms, notes=notes)

    def _tags(self, labels: str, where: str) -> tuple[int, ...]:
        names = {name.strip() for name in labels.split(";")} - {""}
        unknown = sorted(names - set(self.classes))
        if unknown:
            raise InputError(f"{where}: unknown class {unknown[0]!r}; valid are {', '.join(self.classes)}")
        return tuple(sorted(self.classes.index(name) for name in names))


def read_classes(path: Path) -> dict[str, list[str]]:
    """Class -> its synonyms in the file's order; InputError names a bad line."""
    classes: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        name, _, rest = (part.strip() for part in line.partition(":"))
        problem = None
        if not name or ";" in name or "," in name or name.startswith("#"):
            problem = f"{line.strip()!r} is no class; write `class` or `class: synonym, synonym`"
        elif name == "background":
            problem = "background is not to be listed: it is number 0 by itself"
        elif name in classes:
            problem = f"{name} is listed twice"
        if line.strip() and problem:
            raise InputError(f"{path}:{number}: {problem}")
        if line.strip():
            classes[name] = [word.strip() for word in rest.split(",") if word.strip()]
    if not 0 < len(classes) <= MOST_CLASSES:
        raise InputError(f"{path}: {len(classes)} classes; 1 to {MOST_CLASSES} are possible")
    return classes


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """(the table's rows, what is wrong with others, by line); InputError for no header or no good row."""
    rows, problems = [], []
    reader = csv.reader(read_text(path).splitlines(keepends=True), skipinitialspace=True)
    try:
        header = [field.strip().lower() for field in next(reader, [])]
        if sorted(header) not in (["image", "labels"], ["image", "labels", "split"]):
            raise InputError(f"{path}:1: the first line must be `image,labels` (or `image,labels,split`), "
                             f"it is {','.join(header)!r}")
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            row = dict(zip(header, (field.strip() for field in fields)))
            if not any(row.values()):
                continue
            if len(fields) != len(header):
                problems.append(f"{where}: {len(fields)} fields, the header has {len(header)}; "
                                "separate labels by ;")
            elif not row.get("split", "train"):
                problems.append(f"{where}: image {row['image']} has no split")
            else:
                rows.append((row["image"], row["labels"], row.get("split", "train"), where))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}") from error
    if not rows:
        raise InputError(problems[0] if problems else f"{path}: no image is listed")
    return rows, problems


def find_image(image: str, stored: dict[str, Path], by_stem: dict[str, list[str]], where: str) -> str:
    """The stored file that a row names with or without extension; InputError if none or several fit."""
    found = by_stem.get(Path(image).stem if image in stored else image, [])
    if len(found) > 1:
        raise InputError(f"{where}: {' and '.join(found)} share one name, which results are saved by")
    if not found:
        raise InputError(f"{where}: image {image!r} is not in the folder images ({', '.join(SUFFIXES)})")
    return found[0]


def read_text(path: Path) -> str:
    """A text file; InputError if it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte-order mark
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as UTF-8 text ({error})") from error
