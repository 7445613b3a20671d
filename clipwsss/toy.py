"""The toy world on disk: a small VOC-like data set, drawn on demand, whose tags teach the background too.

    python -m clipwsss.toy --draw DIR --seed 0    draws 1200 training and 200 held-out images, tags, masks
    python -m clipwsss.toy --train-clip           re-makes the tiny CLIP that knows its words, in minutes
"""
import argparse
import json
import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from PIL import Image

from .datasets.base import Transform, voc_palette
from .datasets.voc import VocDataset
from .engine import Progress, save_atomic
from .errors import InputError, run_script
from .pictures import colored
from .toy_scenes import CO_OCCURRENCE, Scene, ScenePainter
from .toy_shapes import CLASSES, SUBTYPES

IMAGE_SIZE = 96
RECIPE = "toy.json"  # marks a folder as a toy world and says how to draw it again
CLIP_ASSET = Path(__file__).parent / "assets" / "toy_clip.pt"
CLASS_OF = {subtype: name for name, subtypes in SUBTYPES.items() for subtype in subtypes}


class ToyDataset(VocDataset):
    """The toy world at `root`; draws it there first (seed 0) when the folder is missing or empty.

    Splits are train and val (held out, with textures of its own). InputError when `root` holds anything else.
    """
    classes = CLASSES

    def __init__(self, root: Path | str, split: str, transform: Transform | None = None,
                 skip_bad: bool = False):
        if not (Path(root) / RECIPE).is_file():
            draw_world(root)
        super().__init__(root, split, transform, skip_bad)

    def subtypes(self, index: int) -> dict[str, list[str]]:
        """Truth for judging word selection: for each class in the image the sub-types that are there."""
        path = self.entries[index].image.parents[1] / "Annotations" / f"{self.names[index]}.xml"
        present: dict[str, list[str]] = {}
        for item in ElementTree.parse(path).iter("object"):
            present.setdefault(item.findtext("name"), []).append(item.findtext("subtype"))
        return present


def draw_world(root: Path | str, seed: int = 0, n_train: int = 1200, n_val: int = 200,
               co_occurrence: float = CO_OCCURRENCE) -> None:
    """Draw the world of a seed into a new folder `root`, in VOC2012's layout; it appears whole or not at all.

    Annotations name each object's class and sub-type. `co_occurrence` in [0, 1]: how often a class is on its
    own background. A smaller world is the beginning of a larger one of the same seed. InputError where `root`
    is taken or a number out of range.
    """
    root = Path(root)
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise InputError(f"{root}: already exists; draw into a new folder, or name one that has a {RECIPE}")
    if min(n_train, n_val) < 1 or seed < 0 or not 0 <= co_occurrence <= 1:
        raise InputError("a toy world has at least 1 image in each split, a seed >= 0 and a co-occurrence in "
                         f"[0, 1], not {n_train}, {n_val}, seed {seed} and {co_occurrence}")
    partial = root.absolute().with_name(f".{root.absolute().name}.{os.getpid()}")
    try:
        for folder in ("JPEGImages", "SegmentationClassAug", "Annotations", "ImageSets/Segmentation"):
            (partial / folder).mkdir(parents=True)
        progress = Progress("draw the toy world", n_train + n_val)
        for split, count in (("train", n_train), ("val", n_val)):
            painter = ScenePainter(seed, split, IMAGE_SIZE, co_occurrence)
            names = [f"{split}_{i:05d}" for i in range(count)]
            for name in names:
                _write_scene(partial, name, painter.tagged_scene())
                progress.update(1)
            (partial / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        recipe = {"seed": seed, "n_train": n_train, "n_val": n_val, "co_occurrence": co_occurrence}
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


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m clipwsss.toy", description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--draw", type=Path, metavar="DIR", help="draw a world into this new folder")
    task.add_argument("--train-clip", action="store_true", help="train the toy CLIP from nothing")
    add("--seed", type=int, default=0, help="seed of the world, or of the CLIP")
    add("--n-train", type=int, default=1200, help="training images to draw")
    add("--n-val", type=int, default=200, help="held-out images to draw")
    add("--co-occurrence", type=float, default=CO_OCCURRENCE,
        help="how often a class of the world is on its own background")
    add("--out", type=Path, default=CLIP_ASSET, help="where the CLIP is saved")
    add("--steps", type=int, default=600, help="training steps of the CLIP")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if args.draw:
        draw_world(args.draw, args.seed, args.n_train, args.n_val, args.co_occurrence)
        return 0
    if args.steps < 1 or args.seed < 0:
        raise InputError(f"--steps {args.steps} --seed {args.seed}: at least 1 step and a seed >= 0")
    from .toy_clip import CLIP, draw_scenes, train_clip, zero_shot
    trained, _ = train_clip(args.steps, args.seed)
    weights = {name: value.half() if value.is_floating_point() else value
               for name, value in trained.state_dict().items()}
    save_atomic({"state_dict": weights}, args.out)
    right = zero_shot(CLIP.from_state_dict(weights), draw_scenes(1000, 0, "clip_val"))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB; of 1000 held-out scenes named right: "
          + ", ".join(f"{kind} {share:.1%}" for kind, share in right.items()))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
