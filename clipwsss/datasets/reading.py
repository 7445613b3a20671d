"""Image and mask files: read, and checked once; later scripts know the good ones by path, size and time."""
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError, one_line
from ..files import write_json

EXIF_ORIENTATION = 0x0112
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError)
SMALLEST = 4  # pixels a side: fewer have no map at half their size
MOST_PIXELS = 100_000_000  # of an image, unless --max-pixels says otherwise
Size = tuple[int, int]  # (H, W)
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, which --max-pixels could not raise; `refuse` is ours


def refuse(file: Image.Image, most: int) -> None:
    """ValueError for an opened, not yet decoded image that is too small or large or has too many bits."""
    if min(file.size) < SMALLEST:
        raise ValueError(f"{file.height} x {file.width} pixels (H x W); {SMALLEST} a side are the least")
    refuse_large(file.size[::-1], most)
    if file.mode.startswith(("I", "F")):
        raise ValueError(f"{file.mode} pixels: save it with 8 bits a channel")


def refuse_large(size: Size, most: int) -> None:
    """ValueError for more than `most` pixels."""
    if size[0] * size[1] > most:
        raise ValueError(f"{size[0]} x {size[1]} pixels (H x W) are more than --max-pixels {most}")


def read_image(path: Path, oriented: bool = False, most: int = MOST_PIXELS) -> Image.Image:
    """An RGB image; `oriented` turns it as its EXIF tag says. InputError names a file that it cannot read."""
    try:
        with Image.open(path) as file:
            refuse(file, most)
            return (ImageOps.exif_transpose(file) if oriented else file).convert("RGB")
    except UNREADABLE as error:
        reason = one_line(error) or "larger than the memory"
        raise InputError(f"{path}: not a readable image ({reason})") from error


def read_mask(path: Path, most: int = MOST_PIXELS) -> np.ndarray:
    """A palette or grey PNG as class numbers, uint8 [H, W]; InputError names a file that is neither."""
    try:
        with Image.open(path) as file:
            refuse_large(file.size[::-1], most)
            mode, mask = file.mode, np.array(file)
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable mask ({error})") from error
    if mode not in ("P", "L"):
        raise InputError(f"{path}: a mask is a palette or 8-bit grey PNG of class numbers, this is {mode}")
    return mask


class Checked:
    """Checks image and mask files; `memory` is a JSON file of those that were found good before.

    most: pixels of the largest image that is read.
    """

    def __init__(self, memory: Path | None = None, most: int = MOST_PIXELS):
        self.memory, self.most = memory, most
        self.known: dict[str, list[int]] = {}

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Inside the block files of the memory are not read again, and good ones are added to it."""
        with suppress(OSError, ValueError, TypeError):  # a damaged memory is made anew
            if self.memory:
                self.known = dict(json.loads(self.memory.read_text()))
        before = self.known.copy()
        try:
            yield
        finally:
            if self.memory and self.known != before:
                with suppress(OSError):  # without it nothing but time is lost
                    write_json(self.known, self.memory)
            self.known = {}

    def image_size(self, path: Path, oriented: bool) -> Size:
        """(H, W) of an image file, all of whose bytes were decoded; one of UNREADABLE if they cannot be."""
        def read() -> Size:
            with Image.open(path) as file:
                refuse(file, self.most)
                turned = oriented and file.getexif().get(EXIF_ORIENTATION, 1) >= 5  # 5-8 swap the axes
                size = file.size if turned else file.size[::-1]
                file.draft("RGB", (1, 1))  # a JPEG at 1/8 size: all its bytes are read, few pixels made
                file.load()
            return size
        size = tuple(self._once("image", path, read))
        refuse_large(size, self.most)  # it may have been known from a run with another limit
        return size

    def mask(self, path: Path) -> tuple[Size, list[int]]:
        """((H, W), the values that occur) of a mask file; InputError where it is none."""
        def read() -> list[int]:
            mask = read_mask(path, self.most)
            return [*mask.shape, *np.unique(mask).tolist()]
        height, width, *values = self._once("mask", path, read)
        return (height, width), values

    def _once(self, kind: str, path: Path, read: Callable[[], Sequence[int]]) -> list[int]:
        """What `read` tells of a file, from memory where the file has not changed since."""
        stat, key = os.stat(path), f"{kind} {os.path.abspath(path)}"
        mark = [stat.st_size, stat.st_mtime_ns]
        if self.known.get(key, [])[:2] != mark:
            self.known[key] = [*mark, *read()]
        return self.known[key][2:]
