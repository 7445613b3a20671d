"""What every data set of images and tags shares: samples, batches, a check of all files before training."""
import copy
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..transforms import IGNORE, eval_transform

LONG_CHECK = 2000  # from so many images on, the check takes seconds and shows its progress
EXIF_ORIENTATION = 0x0112
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
Size = tuple[int, int]  # (H, W)
Transform = Callable[[Image.Image, np.ndarray | None], tuple[Tensor, Tensor | None]]


class Sample(NamedTuple):
    """One image [3, H, W] float32 RGB in [0, 1]; label [K], 0 or 1; mask [H, W] int64, 255 = ignore."""
    name: str
    image: Tensor
    label: Tensor
    mask: Tensor | None


class Batch(NamedTuple):
    """Samples stacked: images [B, 3, H, W], labels [B, K], masks [B, H, W] or None without masks."""
    names: list[str]
    images: Tensor
    labels: Tensor
    masks: Tensor | None

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device."""
        moved = (None if part is None else part.to(device, non_blocking=True) for part in self[1:])
        return Batch(self.names, *moved)


class Entry(NamedTuple):
    """One image on disk: its tags as 0-based classes, its mask's file, and the place that lists it."""
    name: str
    image: Path
    tags: tuple[int, ...]
    mask: Path | None
    where: str


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size; InputError where sizes differ."""
    names, images, labels, masks = zip(*samples)
    sizes = {tuple(image.shape[-2:]) for image in images}
    if len(sizes) > 1:
        raise InputError(f"images of sizes {sorted(sizes)} in one batch: crop them or use --batch-size 1")
    return Batch(list(names), torch.stack(images), torch.stack(labels),
                 None if any(mask is None for mask in masks) else torch.stack(masks))


def voc_palette() -> np.ndarray:
    """VOC's 256 colours, uint8 [256, 3]: bits 0-2, 3-5, 6-7 of a number fill R, G, B from the top bit."""
    numbers = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for level in range(3):
        for channel in range(3):
            palette[:, channel] |= ((numbers >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return palette


def read_image(path: Path, oriented: bool = False) -> Image.Image:
    """An RGB image; `oriented` turns it as its EXIF tag says. InputError names a file that it cannot read."""
    try:
        with Image.open(path) as file:
            return (ImageOps.exif_transpose(file) if oriented else file).convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable image ({error})") from error


def read_mask(path: Path) -> np.ndarray:
    """A palette or grey PNG as class numbers, uint8 [H, W]; InputError names a file that is neither."""
    try:
        with Image.open(path) as file:
            mode, mask = file.mode, np.array(file)
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable mask ({error})") from error
    if mode not in ("P", "L"):
        raise InputError(f"{path}: a mask is a palette or 8-bit grey PNG of class numbers, this is {mode}")
    return mask


def files_of(folder: Path, suffixes: Sequence[str], by_stem: bool = True) -> dict[str, Path]:
    """Stem (or file name) -> path of a folder's visible files with these suffixes; InputError without it."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for name in sorted(item.name for item in os.scandir(folder) if not item.name.startswith(".")):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes:
            files[stem if by_stem else name] = folder / name
    return files


def split_error(split: str, splits: Sequence[str], root: Path) -> InputError:
    """The error for a split that the data does not have."""
    return InputError(f"--split {split}: {root} has {', '.join(splits) or 'no splits'}")


class TagDataset(Dataset):
    """Images with tags and perhaps masks: a subclass lists entries, this class checks and serves them.

    names, labels [N, K] float32, classes (K names), palette uint8 [256, 3], synonyms (per class), has_masks,
    splits (the names this data has), skipped and notes (lines to tell the user; `build_dataset` prints them).
    Every file is decoded once on construction. The first problem becomes an InputError that counts the
    others; with `skip_bad` bad images are left out and listed in `skipped`.
    In data that has masks, an image without one counts as ignored (255) throughout.
    """
    classes: Sequence[str] = ()
    palette: np.ndarray = voc_palette()
    oriented = False  # whether images are turned as their EXIF tag says

    def __init__(self, entries: Sequence[Entry], problems: Sequence[str], splits: Sequence[str],
                 transform: Transform | None = None, skip_bad: bool = False, needs_tags: bool = True,
                 synonyms: dict[str, list[str]] | None = None, notes: Sequence[str] = ()):
        self.splits, self.notes, self.synonyms = tuple(splits), list(notes), synonyms or {}
        self.transform, self.needs_tags = transform or eval_transform(), needs_tags
        self._accept(entries, list(problems), skip_bad)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        image, mask = self.load_image(index), None
        if self.has_masks:
            mask = self.load_mask(index)
            if mask is None:
                mask = np.full(image.size[::-1], IGNORE, np.uint8)
        tensor, mask = self.transform(image, mask)
        return Sample(self.names[index], tensor, self.labels[index], mask)

    def load_image(self, index: int) -> Image.Image:
        """The image as stored, PIL RGB."""
        return read_image(self.entries[index].image, self.oriented)

    def load_mask(self, index: int) -> np.ndarray | None:
        """The mask as stored, uint8 [H, W]: 0 background, 1..K, 255 ignore; None where the image has none."""
        path = self.entries[index].mask
        return None if path is None else read_mask(path)

    def image_size(self, index: int) -> Size:
        """(H, W) of the stored image, without opening it."""
        return self.sizes[index]

    def with_transform(self, transform: Transform, masks: bool = True) -> "TagDataset":
        """A shallow copy with another transform; `masks=False` spares reading masks."""
        other = copy.copy(self)
        other.transform, other.has_masks = transform, self.has_masks and masks
        return other

    def with_masks(self, folder: Path | str, skip_bad: bool = False) -> "TagDataset":
        """A copy whose masks are FOLDER/NAME.png (pseudo masks), one for each image, checked like any other.

        Its `skipped` names what was left out of the copy.
        """
        present = files_of(Path(folder), (".png",))
        problems = [f"{Path(folder) / name}.png: no such mask" for name in self.names if name not in present]
        entries = [entry._replace(mask=present[entry.name]) for entry in self.entries
                   if entry.name in present]
        other = copy.copy(self)
        other._accept(entries, problems, skip_bad, dict(zip(self.names, self.sizes)))
        return other

    def _accept(self, entries: Sequence[Entry], problems: list[str], skip_bad: bool,
                sizes: dict[str, Size] | None = None) -> None:
        """Check all entries in one pass and keep the good ones; images of known size are not read again."""
        seen: set[str] = set()
        fresh = []
        for entry in entries:
            if entry.name in seen:
                problems.append(f"{entry.where}: image {entry.name} is listed twice")
            elif self.needs_tags and not entry.tags:
                problems.append(f"{entry.where}: image {entry.name} has no tag")
            else:
                fresh.append(entry)
            seen.add(entry.name)
        checked = self._inspect_all(fresh, sizes or {})
        problems += [problem for _, problem in checked if problem]
        if problems and not skip_bad:
            more = f"and {len(problems) - 1} more; " if len(problems) > 1 else ""
            raise InputError(f"{problems[0]} ({more}--skip-bad goes on without)")
        kept = [(entry, size) for entry, (size, problem) in zip(fresh, checked) if not problem]
        if not kept:
            raise InputError(f"no usable image is left of {len(problems)}; the first: {problems[0]}")
        self.skipped = problems
        self.entries, self.sizes = [entry for entry, _ in kept], [size for _, size in kept]
        self.names = [entry.name for entry in self.entries]
        self.has_masks = any(entry.mask is not None for entry in self.entries)
        self.labels = torch.zeros(len(kept), len(self.classes))
        for row, entry in enumerate(self.entries):
            self.labels[row, list(entry.tags)] = 1

    def _inspect_all(self, entries: Sequence[Entry], sizes: dict[str, Size]) -> list[tuple[Size, str | None]]:
        """`_inspect` of every entry in threads: Pillow decodes outside the interpreter's lock."""
        from ..engine import Progress  # the engine imports this module
        progress = Progress("check files", len(entries)) if len(entries) >= LONG_CHECK else None
        results = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for result in pool.map(self._inspect, entries, [sizes.get(entry.name) for entry in entries]):
                results.append(result)
                if progress:
                    progress.update(1)
        if progress:
            progress.close()
        return results

    def _inspect(self, entry: Entry, size: Size | None) -> tuple[Size, str | None]:
        """(the image's size, the first problem or None) of an entry's files, all compressed data read."""
        try:
            size = size or self._image_size(entry.image)
        except FileNotFoundError:
            return (0, 0), f"{entry.image}: no such image, listed in {entry.where}"
        except UNREADABLE as error:
            return (0, 0), f"{entry.image}: not a readable image ({error}), listed in {entry.where}"
        return size, self._mask_problem(entry, size)

    def _image_size(self, path: Path) -> Size:
        """The size of an image whose file is read to its end; one of UNREADABLE if that is not possible."""
        with Image.open(path) as file:
            turned = self.oriented and file.getexif().get(EXIF_ORIENTATION, 1) >= 5  # 5-8 swap the axes
            size = file.size if turned else file.size[::-1]
            if file.mode.startswith(("I", "F")):
                raise ValueError(f"{file.mode} pixels: save it with 8 bits a channel")
            file.draft("RGB", (1, 1))  # a JPEG at 1/8 size: all its bytes are read, few pixels made
            file.load()
        return size

    def _mask_problem(self, entry: Entry, size: Size) -> str | None:
        """What is wrong with an entry's mask, for an image of this size."""
        if entry.mask is None:
            return None
        try:
            mask = read_mask(entry.mask)
        except InputError as error:
            return str(error)
        if mask.shape != size:
            return (f"{entry.mask}: mask is {mask.shape[0]} x {mask.shape[1]} (H x W), its image "
                    f"{size[0]} x {size[1]}")
        n_classes = len(self.classes)
        strange = mask[(mask > n_classes) & (mask < IGNORE)]
        if strange.size:
            return (f"{entry.mask}: value {strange.min()} in the mask; valid are 0 (background), "
                    f"1..{n_classes} and {IGNORE} (ignore)")
        return None
