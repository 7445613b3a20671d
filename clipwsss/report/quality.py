"""The quality list of label maps: which look wrong, judged without true masks; the worst first."""
import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..datasets import TagDataset
from ..datasets.jobs import ImageJobs
from ..datasets.image_files import IGNORE, read_mask
from ..distributed import gather, rank
from ..files import write_text

QUALITY_FILE = "quality.csv"  # in the run's folder
COLUMNS = ("image", "problems", "tags", "tags without a pixel", "classes that the tags deny",
           "foreground in percent", "agreement in percent")
TINY = 0.005  # share of the foreground below which a mask is suspicious
COVERING = 0.95  # and above which it is
UNLIKE = 0.3  # mean IoU with the reference below which two label maps disagree


class MaskQuality(NamedTuple):
    """What is suspicious about one label map.

    tags: the tagged classes, () where the image is untagged. missing: those without a pixel. denied: classes
    that the mask shows and the tags exclude. foreground, denied_share: shares in [0,1] of the pixels that are
    not ignored. agreement: mean IoU in [0,1] over the tagged classes with another label map of the image;
    None without one.
    """
    image: str
    tags: tuple[str, ...]
    missing: tuple[str, ...]
    denied: tuple[str, ...]
    foreground: float
    denied_share: float
    agreement: float | None


def mask_quality(dataset: TagDataset, index: int, labels: NDArray,
                 reference: NDArray | None = None) -> MaskQuality:
    """The quality of an image's label map uint8 [H,W]; reference: another one, which it is compared with."""
    counts = np.bincount(labels.ravel(), minlength=256)
    counts[IGNORE] = 0
    pixels = max(int(counts.sum()), 1)
    tagged = dataset.entries[index].tags
    missing = ()
    denied = ()
    denied_share = 0.0
    if tagged is not None:
        missing = tuple(dataset.classes[tag] for tag in tagged if counts[tag + 1] == 0)
        others = [label for label in range(1, 1 + len(dataset.classes)) if label - 1 not in tagged]
        denied = tuple(dataset.classes[label - 1] for label in others if counts[label])
        denied_share = float(counts[others].sum()) / pixels
    shown = tagged if tagged is not None else range(len(dataset.classes))
    agreement = None
    if reference is not None:
        ious = [iou for iou in (class_iou(labels, reference, tag + 1) for tag in shown) if iou is not None]
        agreement = sum(ious) / len(ious) if ious else None
    tags = tuple(dataset.classes[tag] for tag in tagged or ())
    foreground = float(counts[1:].sum()) / pixels
    return MaskQuality(dataset.names[index], tags, missing, denied, foreground, denied_share, agreement)


def class_iou(labels: NDArray, reference: NDArray, label: int) -> float | None:
    """IoU in [0,1] of a label's regions in two label maps [H,W]; None where neither has the label."""
    union = ((labels == label) | (reference == label)).sum()
    if union == 0:
        return None
    return float(((labels == label) & (reference == label)).sum() / union)


def problems_of(quality: MaskQuality, reference_name: str) -> list[str]:
    """What is suspicious about a label map, in words, the worst first."""
    problems = []
    if quality.foreground == 0:
        problems.append("blank")
    elif quality.tags and len(quality.missing) == len(quality.tags):
        problems.append("no tagged class has a pixel")
    elif quality.missing:
        problems.append("a tagged class has no pixel")
    if quality.denied:
        problems.append("a class that the tags deny")
    if 0 < quality.foreground < TINY:
        problems.append("tiny")
    if quality.foreground > COVERING:
        problems.append("covers all")
    if quality.agreement is not None and quality.agreement < UNLIKE:
        problems.append(f"unlike the {reference_name}")
    return problems


def badness(quality: MaskQuality) -> tuple:
    """Sort key, the worst last: missing classes, denied ones, an odd extent, disagreement."""
    missing = len(quality.missing) / max(len(quality.tags), 1)
    odd_extent = quality.foreground < TINY or quality.foreground > COVERING
    disagreement = 0.0 if quality.agreement is None else 1 - quality.agreement
    return quality.foreground == 0, missing, quality.denied_share, odd_extent, disagreement


def read_quality(dataset: TagDataset, folder: Path, references: TagDataset | None,
                 workers: int) -> list[MaskQuality]:
    """The quality of the label maps FOLDER/NAME.png of a data set's images.

    references: a data set whose masks they are compared with, where it has the image. Each process looks at
    its part of the images and gets the results of all.
    """
    jobs = ImageJobs(dataset.names, workers)
    numbers = {name: index for index, name in enumerate(references.names)} if references else {}
    work = partial(_read_quality, dataset, folder, references, numbers)
    parts = gather(list(jobs.run("quality", work, range(len(dataset)))))
    return [item for part in parts for item in part]


def _read_quality(dataset: TagDataset, folder: Path, references: TagDataset | None, numbers: dict[str, int],
                  index: int) -> MaskQuality:
    """The quality of one image's label map."""
    name = dataset.names[index]
    reference = references.load_mask(numbers[name]) if name in numbers else None
    return mask_quality(dataset, index, read_mask(folder / f"{name}.png"), reference)


def write_quality(found: Sequence[MaskQuality], path: Path, reference_name: str) -> None:
    """Write the list as CSV, the worst first, and print one line of counts; the main process does so.

    reference_name: what `agreement` compares with, such as `CAM`. A figure that there is none of is empty.
    """
    if rank() > 0:
        return
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for item in sorted(found, key=lambda item: (badness(item), item.image), reverse=True):
        agreement = "" if item.agreement is None else f"{100 * item.agreement:.1f}"
        writer.writerow([item.image, "; ".join(problems_of(item, reference_name)), "; ".join(item.tags),
                         "; ".join(item.missing), "; ".join(item.denied), f"{100 * item.foreground:.2f}",
                         agreement])
    write_text(table.getvalue(), path)
    tags = sum(len(item.tags) for item in found)
    unlike = sum(item.agreement is not None and item.agreement < UNLIKE for item in found)
    print(f"quality of {len(found)} label maps: {sum(item.foreground == 0 for item in found)} blank, "
          f"{sum(len(item.missing) for item in found)} of {tags} tagged classes without a pixel, "
          f"{sum(bool(item.denied) for item in found)} with a class that the tags deny, "
          f"{sum(0 < item.foreground < TINY for item in found)} tiny, "
          f"{sum(item.foreground > COVERING for item in found)} that cover all, {unlike} unlike the "
          f"{reference_name}; the worst first in {path}")
