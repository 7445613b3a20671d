"""What every data set of images and tags shares: samples, batches, a check of all files before training."""
import copy
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..run import digest
from ..pictures import voc_palette
from ..progress import Progress
from .reading import UNREADABLE, Checked, Size, read_image, read_mask
from .transforms import IGNORE, Transform, eval_transform

LONG_CHECK = 2000  # from so many images on, the check takes seconds and shows its progress


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
    """One image on disk: 0-based classes (None: untagged), mask file, place listing it, size once known."""
    name: str
    image: Path
    tags: tuple[int, ...] | None
    mask: Path | None
    where: str
    size: Size | None = None


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size; InputError where sizes differ."""
    names, images, labels, masks = zip(*samples)
    sizes = {tuple(image.shape[-2:]) for image in images}
    if len(sizes) > 1:
        raise InputError(f"images of sizes {sorted(sizes)} in one batch: crop them or use --batch-size 1")
    return Batch(list(names), torch.stack(images), torch.stack(labels),
                 None if any(mask is None for mask in masks) else torch.stack(masks))


def files_of(folder: Path, suffixes: tuple[str, ...] = (".png",)) -> list[Path]:
    """A folder's visible files with these suffixes in order; InputError without the folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    names = sorted(item.name for item in os.scandir(folder))
    return [folder / name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]


def masks_of(folder: Path) -> dict[str, Path]:
    """Image name -> mask of a folder that need not be there."""
    return {path.stem: path for path in files_of(folder)} if folder.is_dir() else {}


def split_error(split: str, splits: Sequence[str], root: Path) -> InputError:
    """The error for a split that the data does not have."""
    return InputError(f"--split {split}: {root} has {', '.join(splits) or 'no splits'}")


class TagDataset(Dataset):
    """Images with tags and perhaps masks: a subclass lists entries, this class checks and serves them.

    names, labels [N, K] float32, classes, palette uint8 [256, 3], synonyms (per class), has_masks, splits,
    skipped and notes (lines for the user). All files are decoded once on construction: InputError names the
    first bad one, with `skip_bad` they are left out. Beside masks, an image without one is all 255.
    """
    classes: Sequence[str] = ()
    category_ids: Sequence[int] = ()  # numbers of classes and images in COCO's files
    image_ids: dict[str, int] = {}
    palette: np.ndarray = voc_palette()
    oriented = False  # whether images are turned as their EXIF tag says

    def __init__(self, entries: Sequence[Entry], problems: Sequence[str], splits: Sequence[str],
                 skip_bad: bool = False, synonyms: dict[str, list[str]] | None = None,
                 notes: Sequence[str] = (), checked: Checked | None = None):
        self.splits, self.notes, self.synonyms = tuple(splits), list(notes), synonyms or {}
        self.transform, self.checked = eval_transform(), checked or Checked()
        self._accept(entries, list(problems), skip_bad)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        image, mask = self.load_image(index), self.load_mask(index) if self.has_masks else None
        if self.has_masks and mask is None:
            mask = np.full(image.size[::-1], IGNORE, np.uint8)
        image, mask = self.transform(image, mask)
        return Sample(self.names[index], image, self.labels[index], mask)

    def load_image(self, index: int) -> Image.Image:
        """The image as stored, PIL RGB."""
        return read_image(self.entries[index].image, self.oriented, self.checked.most)

    def load_mask(self, index: int) -> np.ndarray | None:
        """The mask as stored, uint8 [H, W]: 0 background, 1..K, 255 ignore; None where the image has none."""
        path = self.entries[index].mask
        return None if path is None else read_mask(path, self.checked.most)

    def has_mask(self, index: int) -> bool:
        """Whether an image has a mask, without reading it."""
        return self.entries[index].mask is not None

    def image_size(self, index: int) -> Size:
        """(H, W) of the stored image, without opening it."""
        return self.entries[index].size

    def folders(self) -> set[Path]:
        """The folders that images and masks lie in."""
        return {path.parent for entry in self.entries for path in (entry.image, entry.mask) if path}

    def fingerprint(self) -> str:
        """Digest of the images' names, tags and sizes in pixels and bytes, and of the masks' sizes."""
        return digest((entry.name, entry.tags, entry.size,
                       *(path.stat().st_size for path in (entry.image, entry.mask) if path))
                      for entry in self.entries)

    def with_transform(self, transform: Transform, masks: bool = True) -> "TagDataset":
        """A shallow copy with another transform; `masks=False` spares reading masks."""
        other = copy.copy(self)
        other.transform, other.has_masks = transform, self.has_masks and masks
        return other

    def with_masks(self, folder: Path | str, skip_bad: bool = False) -> "TagDataset":
        """A copy with FOLDER/NAME.png as masks, one for each image, checked; its `skipped` is its own."""
        present = {path.stem: path for path in files_of(Path(folder))}
        problems = [f"{Path(folder) / name}.png: no such mask" for name in self.names if name not in present]
        other = copy.copy(self)
        other._accept([entry._replace(mask=present[entry.name]) for entry in self.entries
                       if entry.name in present], problems, skip_bad)
        return other

    def _numbers(self, names: Iterable[str], where: Path | str) -> tuple[int, ...]:
        """0-based classes of these names; InputError for an unknown one."""
        names = set(names)
        unknown = sorted(names - set(self.classes))
        if unknown:
            raise InputError(f"{where}: unknown class {unknown[0]!r}; valid are {', '.join(self.classes)}")
        return tuple(sorted(self.classes.index(name) for name in names))

    def _accept(self, entries: Sequence[Entry], problems: list[str], skip_bad: bool) -> None:
        """Check all entries in one pass and keep the good ones."""
        unique: dict[str, Entry] = {}
        for entry in entries:
            if entry.name in unique:
                problems.append(f"{entry.where}: image {entry.name} is listed twice")
            elif entry.tags == ():
                problems.append(f"{entry.where}: image {entry.name} has no tag")
            else:
                unique[entry.name] = entry
        progress = Progress("check files", len(unique)) if len(unique) >= LONG_CHECK else None
        self.entries = []
        # Pillow decodes outside the interpreter's lock.
        with self.checked.remembering(), ThreadPoolExecutor(os.cpu_count()) as pool:
            for checked in pool.map(self._inspect, unique.values()):
                (problems if isinstance(checked, str) else self.entries).append(checked)
                if progress:
                    progress.update(1)
        if progress:
            progress.close()
        if problems and not skip_bad:
            more = f"and {len(problems) - 1} more; " if len(problems) > 1 else ""
            raise InputError(f"{problems[0]} ({more}--skip-bad goes on without)")
        if not self.entries:
            first = problems[0] if problems else "; ".join(self.notes) or "none is listed"
            raise InputError(f"no usable image is left of {len(problems)}; the first: {first}", problems)
        self.skipped = problems
        self.names = [entry.name for entry in self.entries]
        self.has_masks = any(entry.mask is not None for entry in self.entries)
        self.labels = torch.zeros(len(self.entries), len(self.classes))
        for row, entry in enumerate(self.entries):
            self.labels[row, list(entry.tags or ())] = 1

    def _inspect(self, entry: Entry) -> Entry | str:
        """The entry with its image's size, or the first problem of its files, all of which are read."""
        try:
            size = entry.size or self.checked.image_size(entry.image, self.oriented)
            entry = entry._replace(size=size)
            self._check_mask(entry)
        except InputError as error:
            return str(error)
        except FileNotFoundError:
            return f"{entry.image}: no such image, listed in {entry.where}"
        except UNREADABLE as error:
            return f"{entry.image}: not a readable image ({error}), listed in {entry.where}"
        return entry

    def _check_mask(self, entry: Entry) -> None:
        """InputError for a mask that does not fit the image or the classes."""
        if entry.mask is None:
            return
        size, values = self.checked.mask(entry.mask)
        n_classes = len(self.classes)
        if size != entry.size:
            raise InputError(f"{entry.mask}: mask is {size[0]} x {size[1]} (H x W), its image "
                             f"{entry.size[0]} x {entry.size[1]}")
        if strange := [value for value in values if n_classes < value < IGNORE]:
            raise InputError(f"{entry.mask}: value {strange[0]} in the mask; valid are 0 (background), "
                             f"1..{n_classes} and {IGNORE} (ignore)")
