"""The toy world on disk: a small data set in VOC2012's layout, which is drawn when it is needed.

Its classes mostly occur on their own backgrounds, so that a classifier of tags learns the backgrounds too.
"""
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import to_json, write_text
from ..pictures import colored, voc_palette
from ..progress import Progress
from .scenes import (CLASSES, CO_OCCURRENCE, LARGEST_OBJECT, SMALLEST_OBJECT, SUBTYPES, TINIEST, Scene,
                     ScenePainter)

TOY_IMAGE_SIZE = 96
N_TRAIN = 800  # training images in the usual world
N_VAL = 200  # its held-out images
ABANDONED = 3600  # seconds after which a half-drawn world is taken to be of a process that died
RECIPE = "toy.json"  # this file marks a folder as a toy world and holds the arguments it was drawn with
CLASS_OF = {subtype: name for name, subtypes in SUBTYPES.items() for subtype in subtypes}


def draw_world(root: Path | str, seed: int = 0, n_train: int = N_TRAIN, n_val: int = N_VAL,
               co_occurrence: float = CO_OCCURRENCE, smallest: float = SMALLEST_OBJECT) -> None:
    """Draw the world of a seed into a new folder `root`, in VOC2012's layout: the whole world or nothing.

    Annotations name the class and the sub-type of each object. co_occurrence: probability that a class is
    drawn on its own background. smallest: half-size of the smallest object as a fraction of the image's side,
    at most LARGEST_OBJECT. The first images of a larger world are those of a smaller world of the same seed.
    InputError where `root` is not empty or a number is out of range.
    """
    root = Path(root)
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise InputError(f"{root}: already exists; draw into a new folder, or name one that has a {RECIPE}")
    counts_are_right = n_train >= 1 and n_val >= 1 and seed >= 0
    if not (counts_are_right and 0 <= co_occurrence <= 1 and TINIEST <= smallest <= LARGEST_OBJECT):
        raise InputError("a toy world needs at least 1 image in each split, a seed >= 0, a co-occurrence in "
                         f"[0, 1] and a smallest half-size in [{TINIEST}, {LARGEST_OBJECT}], not "
                         f"{n_train}, {n_val}, seed {seed}, {co_occurrence} and {smallest}")
    _remove_abandoned(root.absolute())
    partial = root.absolute().with_name(f".{root.absolute().name}.drawing.{os.getpid()}")
    try:
        for folder in ("JPEGImages", "SegmentationClassAug", "Annotations", "ImageSets/Segmentation"):
            (partial / folder).mkdir(parents=True)
        progress = Progress("draw the toy world", n_train + n_val)
        for split, count in (("train", n_train), ("val", n_val)):
            painter = ScenePainter(seed, split, TOY_IMAGE_SIZE, co_occurrence, smallest)
            names = [f"{split}_{i:05d}" for i in range(count)]
            for name in names:
                _write_scene(partial, name, painter.tagged_scene())
                progress.update(1)
            write_text("\n".join(names) + "\n", partial / "ImageSets" / "Segmentation" / f"{split}.txt")
        recipe = {"seed": seed, "n_train": n_train, "n_val": n_val, "co_occurrence": co_occurrence,
                  "smallest": smallest}
        write_text(to_json(recipe) + "\n", partial / RECIPE)
        try:
            os.replace(partial, root)
        except OSError as error:
            if not (root / RECIPE).is_file():  # otherwise another process has drawn it in the meantime
                raise InputError(f"{root}: cannot be created ({error})") from error
        progress.close()
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(root: Path) -> None:
    """Remove the half-drawn worlds that processes which died have left beside `root`.

    For a world "data" their names are ".data.drawing." and the digits of a process. No other folder may go: a
    ".data.backup" or a ".data.2024" is the user's.
    """
    half_drawn = re.compile(rf"\.{re.escape(root.name)}\.drawing\.[0-9]+")
    for folder in root.parent.glob(".*.drawing.*"):
        if half_drawn.fullmatch(folder.name) and time.time() - folder.stat().st_mtime > ABANDONED:
            shutil.rmtree(folder)


def _write_scene(root: Path, name: str, scene: Scene) -> None:
    """Write a scene's image, mask and annotation. Objects that are wholly hidden are left out."""
    mask = np.zeros_like(scene.instances)
    lines = []
    for number, subtype in enumerate(scene.objects, 1):
        visible = scene.instances == number
        if visible.any():
            mask[visible] = 1 + CLASSES.index(CLASS_OF[subtype])
            lines.append(f"  <object><name>{CLASS_OF[subtype]}</name><subtype>{subtype}</subtype></object>\n")
    Image.fromarray(scene.image).save(root / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
    colored(mask, voc_palette()).save(root / "SegmentationClassAug" / f"{name}.png")
    write_text(f"<annotation>\n{''.join(lines)}</annotation>\n", root / "Annotations" / f"{name}.xml")
