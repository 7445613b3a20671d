"""Image files: opened within limits, decoded as RGB and turned by their EXIF orientation alone.

The check of a data set and the reading of its images use the same functions, so that what passes the check
can be read.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from ..errors import InputError, one_line

SMALLEST = 4  # pixels: an image with a shorter side has no map at half its size
MOST_PIXELS = 100_000_000  # of an image, unless --max-pixels says otherwise
EXIF_ORIENTATION = 0x0112
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,  # orientation -> what undoes it
         4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270,
         7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
TIFF_SIZE = (0x0100, 0x0101)  # the tags of a TIFF's width and height
SWAPPED = (5, 6, 7, 8)  # the orientations that swap height and width
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit could not be raised by --max-pixels


@contextmanager
def open_file(path: Path, kind: str, max_pixels: int) -> Iterator[Image.Image]:
    """A file of pixels, opened and not yet decoded; kind, `image` or `mask`, is its name in errors.

    Whatever a missing, damaged or unsuitable file raises, here or inside the block, becomes an InputError of
    one line that names the file.
    """
    try:
        with Image.open(path) as file:
            if file.height * file.width > max_pixels:
                raise ValueError(f"{shown_size(file)} are more than --max-pixels {max_pixels}")
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such {kind}") from None
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise InputError(f"{path}: not a readable {kind} ({one_line(error) or 'out of memory'})") from error


@contextmanager
def open_image(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """An image file, opened and not yet decoded; errors as in `open_file`."""
    with open_file(path, "image", max_pixels) as file:
        if min(file.size) < SMALLEST:
            raise ValueError(f"{shown_size(file)}; each side needs at least {SMALLEST}")
        if file.mode.startswith(("I", "F")):
            raise ValueError(f"{file.mode} pixels: save it with 8 bits a channel")
        yield file


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
    with open_image(path, max_pixels) as file:
        return decode(file, oriented)


def check_image(path: Path, oriented: bool, max_pixels: int, all_bytes: bool) -> tuple[int, int]:
    """The size (H, W) that an image will have when it is read; InputError names a bad file.

    all_bytes: read the whole file and not only its header.
    """
    with open_image(path, max_pixels) as file:
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
