"""Masks compared with what else is known of their images: the tags, and the palette of the classes."""
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .base import TagDataset
from .folder import FolderDataset
from .image_files import IGNORE, permuted_number

SAMPLED = 500  # masks that the scripts look at before they start; `check` looks at all


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
    if most is not None:
        indices = indices[::-(-len(indices) // most) or 1]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [item for item in pool.map(lambda index: look_at(dataset, index), indices) if item]
    tagged = [item for item in found if item.tags]
    untrue = [item for item in tagged if not item.classes & item.tags]
    lines = []
    if untrue:
        hint = ""
        if all(item.has_ignored and not item.classes for item in untrue):
            hint = "; they hold no class but 255, which is ignored: write 1 for the first class"
        lines.append(f"{count(untrue, tagged)} show no class that their image is tagged with (first: "
                     f"{untrue[0].where}){hint}")
    more = [item for item in tagged if item.classes - item.tags]
    if more:
        extra = min(more[0].classes - more[0].tags)
        lines.append(f"{count(more, tagged)} show a class that their image is not tagged with (first: "
                     f"{more[0].where} shows {dataset.classes[extra - 1]})")
    permuted = [item for item in found if item.permuted is not None]
    if permuted:
        lines.append(f"{count(permuted, found)} have a palette that gives numbers the colours of other "
                     "classes, as image editors write it; the numbers are used, not the colours (first: "
                     f"{permuted[0].where}, number {permuted[0].permuted})")
    none_is_true = bool(tagged) and len(untrue) == len(tagged)
    all_are_permuted = bool(found) and len(permuted) == len(found)
    return lines, none_is_true or all_are_permuted


def contradiction_note(dataset: TagDataset, where: Path | str) -> list[str]:
    """The note of the scripts on masks that contradict their images' tags or the palette, if any do."""
    lines, _ = find_contradictions(dataset, SAMPLED)
    return [f"note: {where}: {'; '.join(lines)}"] if lines else []


def unused_note(dataset: FolderDataset) -> list[str]:
    """The note of the scripts on files in the folder of masks that are not used, if there are any."""
    if not dataset.unused_masks:
        return []
    path, reason = dataset.unused_masks[0]
    more = f"; {len(dataset.unused_masks)} files there are not used" if len(dataset.unused_masks) > 1 else ""
    return [f"note: {path}: is not used, because {reason}{more}"]


def count(items: Sequence[MaskFinding], among: Sequence[MaskFinding]) -> str:
    """How many of the masks that were looked at."""
    return f"{len(items)} of {len(among)} masks"


def look_at(dataset: TagDataset, index: int) -> MaskFinding | None:
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
