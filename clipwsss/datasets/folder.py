"""A user's own images and tags: images/, labels.csv, classes.txt, and masks/ if there are any."""
import csv
from pathlib import Path

from ..errors import InputError
from .base import Entry, TagDataset, Transform, files_of, masks_of, split_error

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MOST_CLASSES = 254  # masks are 8-bit: 0 is background and 255 ignored
Row = tuple[str, set[str], str, str]  # image, classes, split, "file:line"


class FolderDataset(TagDataset):
    """Images tagged in a table below `root`.

    images/*: turned as the EXIF tag says; names are file names without extension. labels.csv: header
    `image,labels` (and `split`: its values are the splits, else `train`), labels separated by `;`.
    classes.txt: `class` or `class: synonym, synonym` a line, in the order of the numbers. masks/NAME.png.
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
        stored, masks = files_of(root / "images", SUFFIXES), masks_of(root / "masks")
        places: dict[str, list[Path]] = {}  # by name with extension and without
        for path in stored:
            places.setdefault(path.stem, []).append(path)
        places |= {path.name: places[path.stem] for path in stored}
        entries = []
        for image, labels, _, where in (row for row in rows if row[2] == split):
            files = places.get(image, [])
            try:
                if not files:
                    raise InputError(f"{where}: image {image!r} is not in the folder images "
                                     f"({', '.join(SUFFIXES)})")
                if len(files) > 1:
                    raise InputError(f"{where}: {' and '.join(path.name for path in files)} share one name, "
                                     "which results are saved by")
                name, tags = files[0].stem, self._numbers(labels, where)
                entries.append(Entry(name, files[0], tags, masks.get(name), where))
            except InputError as error:
                problems.append(str(error))
        lost = sorted(masks.keys() - {path.stem for path in stored})
        notes = [f"{masks[lost[0]]}: belongs to no image, not used ({len(lost)} such masks)"] if lost else []
        super().__init__(entries, problems, splits, transform, skip_bad, synonyms, notes)


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
            row = {"split": "train"} | dict(zip(header, (field.strip() for field in fields)))
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                problems.append(f"{where}: {len(fields)} fields, the header has {len(header)}; "
                                "separate labels by ;")
            elif not row["split"]:
                problems.append(f"{where}: image {row['image']} has no split")
            else:
                labels = {name.strip() for name in row["labels"].split(";")} - {""}
                rows.append((row["image"], labels, row["split"], where))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}") from error
    if not rows:
        raise InputError(problems[0] if problems else f"{path}: no image is listed")
    return rows, problems


def read_text(path: Path) -> str:
    """A text file; InputError if it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte-order mark
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as UTF-8 text ({error})") from error
