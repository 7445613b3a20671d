"""The toy world on disk: a small VOC-like data set, drawn on demand, whose tags teach the background too."""
import json
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from ..pictures import colored, voc_palette
from ..progress import Progress
from .scenes import CO_OCCURRENCE, LARGEST, SMALLEST, TINIEST, Scene, ScenePainter
from .shapes import CLASSES, SUBTYPES

IMAGE_SIZE = 96
FORGOTTEN = 3600  # seconds after which a half-drawn world belongs to a process that died
RECIPE = "toy.json"  # marks a folder as a toy world and says how to draw it again
CLASS_OF = {subtype: name for name, subtypes in SUBTYPES.items() for subtype in subtypes}


class WorldSettings(NamedTuple):
    """What worlds may differ in beside their seed: arguments of `draw_world`."""
    n_train: int = 800
    co_occurrence: float = CO_OCCURRENCE
    smallest: float = SMALLEST


def draw_world(root: Path | str, seed: int = 0, n_train: int = WorldSettings().n_train, n_val: int = 200,
               co_occurrence: float = CO_OCCURRENCE, smallest: float = SMALLEST) -> None:
    """Draw the world of a seed into a new folder `root`, in VOC2012's layout; it appears whole or not at all.

    Annotations name each object's class and sub-type. `co_occurrence` in [0, 1]: how often a class is on its
    own background; `smallest`: half-size of the smallest object over the image's side, at most LARGEST, that
    of the largest. A smaller world is the beginning of a larger one of the same seed. InputError where `root`
    is taken or a number out of range.
    """
    root = Path(root)
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise InputError(f"{root}: already exists; draw into a new folder, or name one that has a {RECIPE}")
    shares = 0 <= co_occurrence <= 1 and TINIEST <= smallest <= LARGEST
    if min(n_train, n_val) < 1 or seed < 0 or not shares:
        raise InputError("a toy world has at least 1 image in each split, a seed >= 0, a co-occurrence in "
                         f"[0, 1] and a smallest half-size in [{TINIEST}, {LARGEST}], not "
                         f"{n_train}, {n_val}, seed {seed}, {co_occurrence} and {smallest}")
    for old in root.absolute().parent.glob(f".{root.name}.*"):
        if time.time() - old.stat().st_mtime > FORGOTTEN:
            shutil.rmtree(old)
    partial = root.absolute().with_name(f".{root.absolute().name}.{os.getpid()}")
    try:
        for folder in ("JPEGImages", "SegmentationClassAug", "Annotations", "ImageSets/Segmentation"):
            (partial / folder).mkdir(parents=True)
        progress = Progress("draw the toy world", n_train + n_val)
        for split, count in (("train", n_train), ("val", n_val)):
            painter = ScenePainter(seed, split, IMAGE_SIZE, co_occurrence, smallest)
            names = [f"{split}_{i:05d}" for i in range(count)]
            for name in names:
                _write_scene(partial, name, painter.tagged_scene())
                progress.update(1)
            (partial / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        recipe = {"seed": seed, "n_train": n_train, "n_val": n_val, "co_occurrence": co_occurrence,
                  "smallest": smallest}
        (partial / RECIPE).write_text(json.dumps(recipe) + "\n")
        try:
            os.replace(partial, root)
        except OSError as error:
            if not (root / RECIPE).is_file():  # else another process has drawn it meanwhile
                raise InputError(f"{root}: could not be made ({error})") from error
        progress.close()
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_scene(root: Path, name: str, scene: Scene) -> None:
    """One scene's image, mask and annotation; objects that others hide wholly are not in it."""
    mask, lines = np.zeros_like(scene.instances), []
    for number, subtype in enumerate(scene.objects, 1):
        if (scene.instances == number).any():
            mask[scene.instances == number] = 1 + CLASSES.index(CLASS_OF[subtype])
            lines.append(f"  <object><name>{CLASS_OF[subtype]}</name><subtype>{subtype}</subtype></object>\n")
    Image.fromarray(scene.image).save(root / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
    colored(mask, voc_palette()).save(root / "SegmentationClassAug" / f"{name}.png")
    (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>\n{''.join(lines)}</annotation>\n")
