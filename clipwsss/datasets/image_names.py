"""Which image file a row of a table means: by its exact name, or by what tools and people make of names.

Tables hold the paths of another machine, names in another case, Label Studio's prefixes, or numbers that a
spreadsheet has cut the zeros off.
"""
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from urllib.parse import unquote

from ..errors import InputError
from ..files import nfc, utf8_name

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
UPLOADED = re.compile("[0-9a-f]{8}-")  # which Label Studio puts before the names of uploaded files


class ImageNames:
    """The image files `stored` in `folders`, by what a table may call them.

    by_name: exact names -> files. An image is called by its path below one of the folders, by its file name,
    or without extension; files of one name without extension are one list: results are saved by that name.
    by_form: names in the forms that `find_similar` compares -> files.
    """

    def __init__(self, folders: Sequence[Path], stored: Sequence[Path]):
        self.places = ", ".join(folder.name for folder in folders[1:])
        self.by_name: dict[str, list[Path]] = {}
        self.by_form: dict[str, list[Path]] = {}
        starts = [f"{folder.as_posix()}/" for folder in folders]
        for path in stored:
            same = self.by_name.setdefault(nfc(path.stem), [])
            same.append(path)
            whole = path.as_posix()
            called = [path.name, *(whole.removeprefix(start) for start in starts if whole.startswith(start))]
            self.by_name |= {nfc(name): same for name in called}
            self.by_name |= {utf8_name(name): same for name in (path.stem, *called)}
            for form in {plain_name(path.name), plain_name(path.stem), number_in(path.stem)} - {""}:
                self.by_form.setdefault(form, []).append(path)

    def find(self, image: str) -> tuple[Path, bool]:
        """(the file that a table calls `image`, whether that is its exact name).

        InputError: no file has this name or a similar one, or several have.
        """
        name = nfc(image)
        files = self.by_name.get(name) or self.by_name.get(name.replace("\\", "/"), [])
        is_exact = bool(files)
        if not files:
            files = self.find_similar(image)
        if not files:
            raise InputError(f"image {image!r} is not in the folder {self.places} ({', '.join(SUFFIXES)})")
        stems = {nfc(path.stem) for path in files}
        if len(stems) > 1:
            raise InputError(f"image {image!r} may be {' and '.join(path.name for path in files)}")
        same = self.by_name[stems.pop()]
        if len(same) > 1:
            is_one_name = same[0].name == same[1].name
            shown = " and ".join(str(path) if is_one_name else path.name for path in same)
            raise InputError(f"{shown} have the same name, but results are saved by name: rename one")
        return files[0], is_exact

    def find_similar(self, image: str) -> list[Path]:
        """The files that a name may mean which is no exact one; the first rule that finds any decides.

        The end of a path or URL is an exact name; the file name is one in another case, with Label Studio's
        prefix, or with its `_` for blanks; it is the same number without leading zeros.
        """
        parts = [part for part in written_path(image).split("/") if part not in ("", ".", "..")]
        for begin in range(len(parts)):
            end = "/".join(parts[begin:])
            for name in (end, nfc(unquote(end))):
                if name in self.by_name:
                    return self.by_name[name]
        last = parts[-1] if parts else ""
        for name in (last, unquote(last)):
            for form in (plain_name(name), plain_name(UPLOADED.sub("", name, count=1)), number_in(name)):
                if form in self.by_form:
                    return self.by_form[form]
        return []


def without_suffix(path: PurePath) -> PurePath:
    """A path without the suffix of an image; what follows any other dot belongs to the name."""
    return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path


def written_path(image: str) -> str:
    """The path that a table gives, with `/`; of a URL without query, of Label Studio's files after ?d=."""
    path = nfc(image.strip()).replace("\\", "/")
    if "?d=" in path:
        path = path.partition("?d=")[2]
    return path.partition("?")[0] if "://" in path else path


def may_be_one(first: str, second: str) -> bool:
    """Whether two names may be of one image: in any case, one path, without suffix, is the other's end."""
    paths = []
    for image in (first, second):
        path = written_path(image).casefold()
        for suffix in SUFFIXES:
            path = path.removesuffix(suffix)
        paths.append([part for part in path.split("/") if part not in ("", ".", "..")])
    shorter, longer = sorted(paths, key=len)
    return longer[len(longer) - len(shorter):] == shorter


def plain_name(name: str) -> str:
    """A name in one case, with `_` for blanks and without signs, as web applications store uploaded files."""
    return re.sub(r"[^\w.-]", "", nfc(name).casefold().strip().replace(" ", "_"))


def number_in(name: str) -> str:
    """`#` and the number that a name of digits and `_` is, without leading zeros; "" for other names."""
    digits = name.replace("_", "")
    return f"#{digits.lstrip('0')}" if digits.isdecimal() else ""
