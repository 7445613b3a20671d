"""Image files and label maps: found in folders, opened within limits, checked by their headers, decoded.

A label map is a file of class numbers (0 is the background, 1..K the classes, 255 ignored). It holds the
numbers themselves, as grey values or as indices of a palette, or the colours that stand for them in the data
set's palette. The check of a data set and the reading of its files use the same functions, so that what
passes the check can be read.
"""
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError, one_line
from ..files import nfc, read_text
from ..pictures import voc_palette

SMALLEST = 4  # pixels: an image with a shorter side has no map at half its size
MOST_PIXELS = 100_000_000  # of an image, unless --max-pixels says otherwise
EXIF_ORIENTATION = 0x0112
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,  # orientation -> what undoes it
         4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270,
         7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
TIFF_SIZE = (0x0100, 0x0101)  # the tags of a TIFF's width and height
SWAPPED = (5, 6, 7, 8)  # the orientations that swap height and width
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit could not be raised by --max-pixels
IGNORE = 255  # the mask value of pixels that are neither trained on nor scored
MOST_CLASSES = 254  # masks have 8 bits: 0 is the background and 255 is ignored
NUMBERS = ("P", "L", "1")  # Pillow's modes of files that hold numbers
COLORS = ("RGB", "RGBA")


def files_of(folder: Path, suffixes: tuple[str, ...] = (".png",), optional: bool = False) -> list[Path]:
    """The visible files of a folder that have one of these suffixes, sorted by name.

    A missing folder is an InputError, unless it is `optional` and thus holds no files.
    """
    if optional and not folder.is_dir():
        return []
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    names = sorted(item.name for item in os.scandir(folder))
    return [folder / name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]


def label_maps_of(folder: Path, optional: bool = False) -> dict[str, Path]:
    """Image name -> its label map NAME.png in a folder; InputError where two files are one image's.

    A missing folder is an InputError, unless it is `optional`.
    """
    found: dict[str, Path] = {}
    for path in files_of(folder, optional=optional):
        name = nfc(path.stem)
        if name in found:
            raise InputError(f"{found[name]} and {path.name}: both are label maps of image {name}; keep "
                             "one")
        found[name] = path
    return found


@contextmanager
def open_file(path: Path, kind: str, max_pixels: int) -> Iterator[Image.Image]:
    """A file of pixels, opened and not yet decoded; kind is its name in errors.

    A kind `image` has 8 bits a channel and sides of at least SMALLEST pixels, a `mask` numbers or colours.
    Whatever a missing, damaged or unsuitable file raises, here or inside the block, becomes an InputError of
    one line that names the file.
    """
    try:
        with Image.open(path) as file:
            if file.height * file.width > max_pixels:
                raise ValueError(f"{shown_size(file)} are more than --max-pixels {max_pixels}")
            if kind == "image" and min(file.size) < SMALLEST:
                raise ValueError(f"{shown_size(file)}; each side needs at least {SMALLEST}")
            if kind == "image" and file.mode.startswith(("I", "F")):
                raise ValueError(f"{file.mode} pixels: save it with 8 bits a channel")
            if kind == "mask" and file.mode not in NUMBERS + COLORS:
                raise InputError(f"{path}: a mask is a palette or 8-bit grey PNG of class numbers, or an RGB "
                                 f"PNG of their colours, this is {file.mode}")
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such {kind}") from None
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise InputError(f"{path}: not a readable {kind} ({one_line(error) or 'out of memory'})") from error


# ---- images

def shown_size(file: Image.Image) -> str:
    """The size of an opened file for messages."""
    return f"{file.height} x {file.width} pixels (H x W)"


def exif_orientation(file: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 (upright) to 8; 1 where the EXIF block is damaged."""
    try:
        # The base class's method: Pillow's own for PNG decodes all pixels to look for a tag behind them.
        value = Image.Image.getexif(file).get(EXIF_ORIENTATION)
    except Exception:  # a damaged block fails in as many ways as there are bytes
        return 1
    return value if value in TURNS else 1


def decode(file: Image.Image, oriented: bool) -> Image.Image:
    """The pixels of an opened image as RGB; `oriented` turns them as the EXIF tag says (a TIFF's always)."""
    turned_by_pillow = file.format == "TIFF"  # whether or not it is asked to
    orientation = exif_orientation(file) if oriented and not turned_by_pillow else 1
    image = file.convert("RGB")
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def read_image(path: Path, oriented: bool = False, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """An image file as RGB; `oriented` turns it as its EXIF tag says. InputError names an unreadable file."""
    with open_file(path, "image", max_pixels) as file:
        return decode(file, oriented)


def check_image(path: Path, oriented: bool, max_pixels: int, all_bytes: bool) -> tuple[int, int]:
    """The size (H, W) that an image will have when it is read; InputError names a bad file.

    all_bytes: read the whole file and not only its header.
    """
    with open_file(path, "image", max_pixels) as file:
        width, height = file.size
        if file.format == "TIFF":  # the stored size, which not every version of Pillow states before loading
            width, height = (file.tag_v2[tag] for tag in TIFF_SIZE)
        size = (height, width)
        if (oriented or file.format == "TIFF") and exif_orientation(file) in SWAPPED:
            size = (width, height)
        if all_bytes:
            file.draft("RGB", (1, 1))  # a JPEG at 1/8 of its size: reads all bytes, makes few pixels
            decode(file, oriented)
    return size


# ---- label maps

def refuse_many_classes(n_classes: int, where: Path | str) -> None:
    """InputError, which begins with `where`, for more classes than label maps can hold."""
    if n_classes > MOST_CLASSES:
        raise InputError(f"{where}: {n_classes} classes; 1 to {MOST_CLASSES} are possible, because label "
                         "maps have 8 bits")


def read_mask(path: Path, max_pixels: int = MOST_PIXELS, n_classes: int | None = None,
              palette: np.ndarray | None = None) -> np.ndarray:
    """A label map's file as class numbers, uint8 [H, W]: 0 background, 1..K classes, 255 ignore.

    palette: uint8 [256, 3], the colours of the numbers in an RGB file (default: VOC's). InputError names a
    file that is no label map, a colour that is not in the palette and, where `n_classes` is given, a value
    that is no class.
    """
    with open_file(path, "mask", max_pixels) as file:
        pixels = np.array(file)
    if pixels.ndim == 3:
        colors = voc_palette() if palette is None else palette
        pixels = numbers_of_colors(pixels[..., :3], colors, n_classes or MOST_CLASSES, path)
    mask = pixels.astype(np.uint8, copy=False)
    if n_classes is not None:
        wrong = np.unique(mask[(mask > n_classes) & (mask != IGNORE)])
        if wrong.size:
            values = "value " if wrong.size == 1 else "values "
            values += ", ".join(map(str, wrong[:3].tolist()))
            raise InputError(f"{path}: {values} in the mask; valid are 0 (background), 1..{n_classes} and "
                             f"{IGNORE} (ignore){scale_hint(mask, n_classes)}")
    return mask


def check_mask(path: Path, size: tuple[int, int], n_classes: int, palette: np.ndarray, max_pixels: int,
               all_bytes: bool) -> None:
    """InputError unless a label map fits an image of this size (H, W), the classes and the palette.

    all_bytes: read the whole file and not only its header. A file of colours is always read, because nothing
    in its header tells a label map from a photograph.
    """
    with open_file(path, "mask", max_pixels) as file:
        if (file.height, file.width) != size:
            raise InputError(f"{path}: mask is {file.height} x {file.width} (H x W), its image {size[0]} x "
                             f"{size[1]}")
        must_read = all_bytes or file.mode in COLORS
    if must_read:
        read_mask(path, max_pixels, n_classes, palette)


def scale_hint(mask: np.ndarray, n_classes: int) -> str:
    """What a message adds where all values of a mask are class numbers times one factor, else ""."""
    values = np.unique(mask[mask > 0])
    factor = int(np.gcd.reduce(values))
    if values.size > 1 and factor > 1 and values.max() // factor <= n_classes:
        return f"; the values look like class numbers times {factor}: divide them"
    return ""


def numbers_of_colors(pixels: np.ndarray, palette: np.ndarray, n_classes: int, path: Path) -> np.ndarray:
    """RGB pixels uint8 [H, W, 3] as the numbers uint8 [H, W] of their colours in a palette uint8 [256, 3].

    The colours of 0..n_classes and of 255 are known; InputError names the file and the first other colour.
    """
    def code(colors: np.ndarray) -> np.ndarray:
        """Each colour [..., 3] as one number."""
        return colors.astype(np.int64) @ np.array([65536, 256, 1])

    numbers = np.array([*range(n_classes + 1), IGNORE])
    known = code(palette[numbers])
    order = np.argsort(known)
    codes = code(pixels)
    places = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
    found = known[order][places] == codes
    if not found.all():
        color = tuple(pixels[~found][0].tolist())
        raise InputError(f"{path}: a mask is a palette or 8-bit grey PNG of class numbers, or an RGB PNG of "
                         f"their colours; colour {color} in {(~found).sum()} pixels belongs to no class "
                         f"(class 1 is {tuple(palette[1].tolist())})")
    return numbers[order][places].astype(np.uint8)


def read_labelmap(path: Path, classes: Sequence[str]) -> np.ndarray:
    """The palette uint8 [256, 3] of a labelmap.txt, which CVAT writes beside the masks that it exports.

    A line is `name:red,green,blue:parts:actions`. Numbers that no line is about keep VOC's colours.
    InputError names a bad line, a class without a colour, and a colour that two labels have.
    """
    palette = voc_palette().copy()
    names = ["background", *classes]
    found: dict[tuple[int, ...], str] = {}
    for number, line in enumerate(nfc(read_text(path)).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"(.+?):(\d+),(\d+),(\d+):.*", line.strip())
        color = tuple(int(value) for value in match.groups()[1:]) if match else ()
        if not color or max(color) > 255:
            raise InputError(f"{path}:{number}: {line.strip()!r} is not `name:red,green,blue:parts:actions`")
        if color in found:
            raise InputError(f"{path}:{number}: {match[1]} has the colour of {found[color]}")
        found[color] = match[1]
        if match[1] in names:
            palette[names.index(match[1])] = color
    missing = [name for name in classes if name not in found.values()]
    if missing:
        raise InputError(f"{path}: no line for {missing[0]}; it names {', '.join(found.values())}")
    return palette


def permuted_number(path: Path, palette: np.ndarray, n_classes: int, values: np.ndarray) -> int | None:
    """The first of a mask's `values` whose own colour is that of another number in `palette` uint8 [256, 3].

    An image editor that saves the colours of the classes with a palette of its own gives them other numbers.
    None: the file has no palette, or its palette contradicts no number.
    """
    with open_file(path, "mask", MOST_PIXELS) as file:
        if file.mode != "P":
            return None
        _, stored = file.palette.getdata()
    own = np.zeros((256, 3), np.uint8)
    own[:len(stored) // 3] = np.frombuffer(stored, np.uint8).reshape(-1, 3)
    numbers = [*range(n_classes + 1), IGNORE]
    meaning = {tuple(palette[number].tolist()): number for number in numbers}
    for value in values.tolist():
        if meaning.get(tuple(own[value].tolist()), value) != value:
            return value
    return None
