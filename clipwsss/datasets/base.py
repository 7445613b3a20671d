"""What all data sets share: samples, batches, the list of images and the checks of their files."""
import copy
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..files import nfc
from ..pictures import voc_palette
from ..progress import Progress
from ..run import digest
from .image_files import (IGNORE, MOST_PIXELS, check_image, check_mask, label_maps_of, permuted_number,
                          read_image, read_mask)

LONG_CHECK = 2000  # from this many images on, the check of the files shows its progress
SAMPLED = 500  # masks that the scripts look at before they start; the command `check` looks at all

Size = tuple[int, int]  # (H, W)
Transform = Callable[[Image.Image, np.ndarray | None], tuple[Tensor, Tensor | None]]


class Sample(NamedTuple):
    """One image [3, H, W] float32 RGB in [0, 1], its label [K] of 0 and 1, its mask [H, W] int64 or None."""
    name: str
    image: Tensor
    label: Tensor
    mask: Tensor | None


class Batch(NamedTuple):
    """Samples stacked: images [B, 3, H, W], labels [B, K], masks [B, H, W] or None."""
    names: list[str]
    images: Tensor
    labels: Tensor
    masks: Tensor | None

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device."""
        images = self.images.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        return Batch(self.names, images, labels, masks)


class Entry(NamedTuple):
    """One image of a data set, as files on disk.

    tags: 0-based classes in rising order, or None where the image is untagged. mask: its file, if there is
    one. where: the place that lists the image, for error messages. stated_size: the size that an annotation
    file states. size: the size of the image file, known once the file has been checked.
    """
    name: str
    image: Path
    tags: tuple[int, ...] | None
    mask: Path | None
    where: str
    stated_size: Size | None = None
    size: Size | None = None


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size; InputError if their sizes differ."""
    sizes = {tuple(sample.image.shape[-2:]) for sample in samples}
    if len(sizes) > 1:
        raise InputError(f"images of sizes {sorted(sizes)} in one batch: crop them or use --batch-size 1")
    masks = [sample.mask for sample in samples]
    return Batch([sample.name for sample in samples],
                 torch.stack([sample.image for sample in samples]),
                 torch.stack([sample.label for sample in samples]),
                 None if any(mask is None for mask in masks) else torch.stack(masks))


def whole_image(image: Image.Image, mask: np.ndarray | None = None) -> tuple[Tensor, Tensor | None]:
    """An RGB image at its own size as float32 [3, H, W] in [0, 1], and its mask as int64 [H, W] or None."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    pixels.mul_(1.0 / 255)  # as torchvision's to_dtype does; a division by 255 may differ in the last bit
    return pixels, None if mask is None else torch.from_numpy(mask).long()


def split_error(split: str, splits: Sequence[str], root: Path) -> InputError:
    """The error for a split that the data set does not have."""
    return InputError(f"--split {split}: {root} has {', '.join(splits) or 'no splits'}")


class TagDataset(Dataset):
    """Images with tags and perhaps masks. A subclass lists the entries; this class checks and serves them.

    Attributes of the data set: classes, synonyms of each class, palette uint8 [256, 3], splits, has_masks,
    folders (those that hold the images and masks), skipped (one line for each file left out), notes (lines
    for the user). Attributes in the order of the images: names, labels [N, K] float32, sizes (H, W) of the
    stored images, masked (whether an image has a mask).

    When it is built, only the headers of its files are read: that they exist, their sizes and their modes.
    With `skip_bad` every file is decoded, and images with bad files are left out. Otherwise the first problem
    is an InputError, as is a damaged file later, when it is read. Samples are whole images until
    `with_transform`. If only some images have masks, the mask of every other image is 255 everywhere.
    """
    classes: Sequence[str] = ()
    category_ids: Sequence[int] = ()  # COCO's numbers of the classes
    image_ids: dict[str, int] = {}  # COCO's numbers of the images
    palette: np.ndarray = voc_palette()
    annotations: Path | None = None  # the file that masks are drawn from, if one is
    oriented = False  # whether images are turned as their EXIF tag says

    def __init__(self, entries: Sequence[Entry], problems: Sequence[str], splits: Sequence[str],
                 skip_bad: bool = False, max_pixels: int = MOST_PIXELS,
                 synonyms: dict[str, list[str]] | None = None, notes: Sequence[str] = ()):
        self.splits = tuple(splits)
        self.max_pixels = max_pixels
        self.synonyms = synonyms or {}
        self.notes = list(notes)
        self.transform: Transform = whole_image
        self._keep_good(entries, list(problems), skip_bad)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        image = self.load_image(index)
        mask = None
        if self.has_masks:
            mask = self.load_mask(index)
            if mask is None:
                mask = np.full((image.height, image.width), IGNORE, np.uint8)
        pixels, labels = self.transform(image, mask)
        return Sample(self.names[index], pixels, self.labels[index], labels)

    def load_image(self, index: int) -> Image.Image:
        """The image as stored, PIL RGB; InputError names a damaged file."""
        return read_image(self.entries[index].image, self.oriented, self.max_pixels)

    def load_mask(self, index: int) -> np.ndarray | None:
        """The mask as stored, uint8 [H, W]: 0 background, 1..K, 255 ignore; None if the image has none.

        InputError names a damaged file, and one with another value.
        """
        path = self.entries[index].mask
        if path is None:
            return None
        return read_mask(path, self.max_pixels, len(self.classes), self.palette)

    def fingerprint(self) -> str:
        """Digest of the images' names, tags and sizes in pixels and bytes, and the masks' sizes in bytes."""
        return digest((entry.name, entry.tags, entry.size,
                       *(path.stat().st_size for path in (entry.image, entry.mask) if path))
                      for entry in self.entries)

    def with_transform(self, transform: Transform, masks: bool = True) -> "TagDataset":
        """A shallow copy with another transform; with `masks=False` its samples have no masks."""
        other = copy.copy(self)
        other.transform = transform
        other.has_masks = self.has_masks and masks
        return other

    def only(self, indices: Sequence[int]) -> "TagDataset":
        """A shallow copy with some of the images, in the order of their numbers `indices`."""
        other = copy.copy(self)
        other.entries = [self.entries[index] for index in indices]
        other.names = [self.names[index] for index in indices]
        other.sizes = [self.sizes[index] for index in indices]
        other.masked = [self.masked[index] for index in indices]
        other.labels = self.labels[list(indices)]
        return other

    def with_masks(self, folder: Path | str, skip_bad: bool = False,
                   corrections: Mapping[str, Path] | None = None) -> "TagDataset":
        """A copy whose masks are FOLDER/NAME.png, checked as on construction; `skipped` is the copy's own.

        corrections: masks by image, which are taken instead.
        """
        present = label_maps_of(Path(folder)) | (corrections or {})
        entries = []
        problems = []
        for entry in self.entries:
            if entry.name in present:
                entries.append(entry._replace(mask=present[entry.name]))
            else:
                problems.append(f"{Path(folder) / entry.name}.png: no such mask")
        other = copy.copy(self)
        other._keep_good(entries, problems, skip_bad)
        return other

    def class_numbers(self, names: Iterable[str], where: Path | str) -> tuple[int, ...]:
        """0-based numbers of these classes, in rising order; InputError for an unknown name."""
        names = {nfc(name) for name in names}
        unknown = sorted(names - set(self.classes))
        if unknown:
            raise InputError(f"{where}: unknown class {unknown[0]!r}; valid are {', '.join(self.classes)}")
        return tuple(sorted(self.classes.index(name) for name in names))

    def _keep_good(self, entries: Sequence[Entry], problems: list[str], skip_bad: bool) -> None:
        """Check all entries and keep the good ones; InputError unless all are good or `skip_bad` is set."""
        listed: dict[str, Entry] = {}
        contradicted: set[str] = set()
        for entry in entries:
            if entry.name in listed:
                problems.append(f"{entry.where}: image {entry.name} is listed twice")
                if entry._replace(where="") != listed[entry.name]._replace(where=""):
                    contradicted.add(entry.name)  # which entry is right is not known: none is kept
            elif entry.tags == ():
                problems.append(f"{entry.where}: image {entry.name} has no tag")
            else:
                listed[entry.name] = entry
        listed = {name: entry for name, entry in listed.items() if name not in contradicted}
        self.entries = []
        progress = Progress("check files", len(listed)) if len(listed) >= LONG_CHECK else None
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            # Pillow decodes outside the interpreter's lock; headers are read faster without threads.
            if skip_bad:
                outcomes = pool.map(lambda entry: self._check_entry(entry, decode=True), listed.values())
            else:
                outcomes = map(self._check_entry, listed.values())
            for entry, problem in outcomes:
                if problem:
                    problems.append(problem)
                else:
                    self.entries.append(entry)
                if progress:
                    progress.update(1)
        if progress:
            progress.close()
        if problems and not skip_bad:
            more = f"and {len(problems) - 1} more; " if len(problems) > 1 else ""
            raise InputError(f"{problems[0]} ({more}--skip-bad leaves bad images out)")
        if not self.entries:
            first = problems[0] if problems else "; ".join(self.notes) or "no image is listed"
            raise InputError(f"no usable image is left of {len(problems)}; the first problem: {first}",
                             problems)
        self.skipped = problems
        self.names = [entry.name for entry in self.entries]
        self.sizes = [entry.size for entry in self.entries]
        self.masked = [entry.mask is not None for entry in self.entries]
        self.has_masks = any(self.masked)
        self.folders = {entry.image.parent for entry in self.entries}
        self.folders |= {entry.mask.parent for entry in self.entries if entry.mask is not None}
        self.labels = torch.zeros(len(self.entries), len(self.classes))
        for row, entry in enumerate(self.entries):
            self.labels[row, list(entry.tags or ())] = 1

    def _check_entry(self, entry: Entry, decode: bool = False) -> tuple[Entry, str | None]:
        """(the entry with the size of its image, the first problem of its files or None).

        With `decode` all bytes of the files are read, else their headers.
        """
        try:
            size = check_image(entry.image, self.oriented, self.max_pixels, all_bytes=decode)
        except InputError as error:
            return entry, f"{error}, listed in {entry.where}"
        entry = entry._replace(size=size)
        found = f"{size[0]} x {size[1]}"
        if entry.stated_size not in (None, size):
            stated = f"{entry.stated_size[0]} x {entry.stated_size[1]}"
            return entry, f"{entry.image}: {found} (H x W), but {entry.where} says {stated}"
        if entry.mask is None:
            return entry, None
        try:
            check_mask(entry.mask, size, len(self.classes), self.palette, self.max_pixels, all_bytes=decode)
        except InputError as error:
            return entry, str(error)
        return entry, None


# ---- masks compared with the tags and the palette

class MaskFinding(NamedTuple):
    """What a mask shows: its class numbers from 1, whether 255 is in it, and what contradicts it.

    where: its file, or the file that it is drawn from, and the image. tags: the image's tags, numbered as the
    classes. permuted: a number that the file's palette gives the colour of another number, or None.
    """
    where: str
    tags: set[int]
    classes: set[int]
    has_ignored: bool
    permuted: int | None


def find_contradictions(dataset: TagDataset, most: int | None = None) -> tuple[list[str], bool]:
    """(lines on masks that contradict tags or palettes, whether no mask fits).

    No mask fits where none shows a class of its image's tags, or where all palettes contradict the numbers.
    Each line has a count and the first file. most: look at so many masks, evenly spread. Masks that cannot be
    read are left to their reader.
    """
    indices = [index for index, masked in enumerate(dataset.masked) if masked]
    if most is not None and len(indices) > most:
        indices = indices[::math.ceil(len(indices) / most)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda index: look_at_mask(dataset, index), indices))
    found = [item for item in found if item is not None]
    tagged = [item for item in found if item.tags]
    untrue = [item for item in tagged if not item.classes & item.tags]
    lines = []
    if untrue:
        hint = ""
        if all(item.has_ignored and not item.classes for item in untrue):
            hint = "; they hold no class but 255, which is ignored: write 1 for the first class"
        lines.append(f"{len(untrue)} of {len(tagged)} masks show no class that their image is tagged with "
                     f"(first: {untrue[0].where}){hint}")
    more = [item for item in tagged if item.classes - item.tags]
    if more:
        extra = min(more[0].classes - more[0].tags)
        lines.append(f"{len(more)} of {len(tagged)} masks show a class that their image is not tagged with "
                     f"(first: {more[0].where} shows {dataset.classes[extra - 1]})")
    permuted = [item for item in found if item.permuted is not None]
    if permuted:
        lines.append(f"{len(permuted)} of {len(found)} masks have a palette that gives numbers the colours "
                     "of other classes, as image editors write it; the numbers are used, not the colours "
                     f"(first: {permuted[0].where}, number {permuted[0].permuted})")
    none_is_true = bool(tagged) and len(untrue) == len(tagged)
    all_are_permuted = bool(found) and len(permuted) == len(found)
    return lines, none_is_true or all_are_permuted


def contradiction_note(dataset: TagDataset, where: Path | str) -> list[str]:
    """The note of the scripts on masks that contradict their images' tags or the palette, if any do."""
    lines, _ = find_contradictions(dataset, SAMPLED)
    return [f"note: {where}: {'; '.join(lines)}"] if lines else []


def look_at_mask(dataset: TagDataset, index: int) -> MaskFinding | None:
    """What one mask shows; None if it cannot be read."""
    entry = dataset.entries[index]
    permuted = None
    try:
        counts = np.bincount(dataset.load_mask(index).ravel(), minlength=256)
        values = counts.nonzero()[0]
        if entry.mask is None:
            where = f"{dataset.annotations}, image {entry.name}"
        else:
            where = str(entry.mask)
            permuted = permuted_number(entry.mask, dataset.palette, len(dataset.classes), values)
    except InputError:
        return None
    tags = {tag + 1 for tag in entry.tags or ()}
    return MaskFinding(where, tags, set(values.tolist()) - {0, IGNORE}, counts[IGNORE] > 0, permuted)
