"""The whole pipeline on the toy world: draws it, runs the five scripts and shows the result."""
import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from .cams.files import read_cam, resize_cam
from .datasets import build_dataset
from .datasets.base import read_mask
from .errors import InputError, run_script
from .flags import Parser, whole
from .pictures import colored, contact_sheet, heat, save
from .toy.world import RECIPE

SCRIPTS = Path(__file__).resolve().parents[1]
SHOWN = 6  # images of the contact sheet
STAGES = {"train_cam": "CAM", "clims": "CLIMS", "train_prompt": "POLE", "semples": "SemPLeS",
          "make_pseudo": "pseudo masks (from POLE)", "train_seg": "segmenter, new images"}


class Step(NamedTuple):
    """What follows `python`, and its seconds on 2 cores, of which only the proportions matter."""
    seconds: int
    command: list[str]


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m clipwsss.demo", description=__doc__,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--runs", type=Path, default=Path("runs/demo"), help="everything is written below this folder")
    add("--seed", type=whole(0, 2**32 - 1), default=0, help="seed of the world and of the training")
    add("--quick", action="store_true", help="a small world and few epochs, to see that it all runs")
    add("--retrain-clip", action="store_true", help="train the toy CLIP from nothing too (minutes)")
    return parser


def steps(runs: Path, seed: int, quick: bool, retrain_clip: bool) -> list[Step]:
    """The whole demo's command lines in order; CLIMS and SemPLeS run beside POLE, whose CAMs go on."""
    folder, clip = runs / "toy", runs / "toy_clip.pt"
    seeded, toy = ["--seed", seed], ["--dataset", "toy", "--runs", runs]
    own_clip = ["--clip", clip] if retrain_clip else []
    guide = [*toy, *seeded, *own_clip, *(["--epochs", 1] if quick else [])]
    shown = [folder / "data" / "JPEGImages" / f"train_{number:05d}.jpg" for number in range(SHOWN)]

    def step(seconds: int, name: str, *flags: object) -> Step:
        start = ["-m", name] if name == "clipwsss.toy" else [os.path.relpath(SCRIPTS / name)]
        return Step(seconds, [*start, *map(str, flags)])

    return [
        *([step(240, "clipwsss.toy", "--train-clip", *seeded, "--out", clip)] if retrain_clip else []),
        step(8, "clipwsss.toy", "--draw", folder / "data", *seeded,
             "--n-train", 120 if quick else 800, "--n-val", 40 if quick else 200),
        step(58, "train_cam.py", *toy, *seeded, *(["--epochs", 3] if quick else [])),
        step(32, "train_prompt.py", *guide, "--method", "clims", "--out", folder / "clims"),
        step(52, "train_prompt.py", *guide, "--method", "semples", "--out", folder / "semples",
             *(["--match-epochs", 1, "--prompt-epochs", 1] if quick else [])),
        step(38, "train_prompt.py", *guide, "--method", "pole"),
        step(15, "make_pseudo.py", *toy, *seeded),
        step(45, "train_seg.py", *toy, *seeded, *(["--epochs", 2] if quick else [])),
        step(6, "eval.py", *toy, "--masks", folder / "make_pseudo" / "masks", "--cams",
             *(folder / stage / "cams" for stage in ("train_cam", "clims", "train_prompt", "semples")),
             "--json", runs / "train.json"),
        step(6, "eval.py", *toy, "--split", "val", "--masks", folder / "train_seg" / "predictions",
             "--json", runs / "val.json"),
        step(6, "train_seg.py", *toy, "--predict", *shown),
    ]


def table(runs: Path) -> str:
    """mIoU of every stage from eval's JSON files."""
    train, val = (json.loads((runs / f"{name}.json").read_text()) for name in ("train", "val"))
    miou = {Path(report["folder"]).parent.name: report["best"]["miou"] for report in (*train["runs"], val)}
    lines = [f"{title:<26} {miou[stage]:6.1f}" for stage, title in STAGES.items()]
    return "\n".join([f"{'stage':<26} mIoU %", "-" * 33, *lines])


def sheet(runs: Path) -> Path:
    """The contact sheet: image, CAM baseline, CAM guided, pseudo mask, prediction, truth."""
    folder, rows = runs / "toy", []
    dataset = build_dataset("toy", folder / "data", "train")
    for index, name in enumerate(dataset.names[:SHOWN]):
        image = dataset.load_image(index)
        cams = [read_cam(folder / stage / "cams", name) for stage in ("train_cam", "train_prompt")]
        masks = [read_mask(folder / "make_pseudo" / "masks" / f"{name}.png"),
                 read_mask(folder / "train_seg" / "predicted" / f"{name}.png"), dataset.load_mask(index)]
        rows.append([image, *(heat(resize_cam(cam, image.size[::-1]).max(0)) for cam in cams),
                     *(colored(mask, dataset.palette) for mask in masks)])
    titles = ("image", "CAM baseline", "CAM guided", "pseudo mask", "prediction", "truth")
    save(contact_sheet(rows, titles), runs / "contact_sheet.png")
    return runs / "contact_sheet.png"


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if args.runs.exists():
        if not (args.runs / "toy" / "data" / RECIPE).exists():
            raise InputError(f"--runs {args.runs}: exists and is no earlier demo; name a new folder")
        shutil.rmtree(args.runs)
    plan, begin = steps(args.runs, args.seed, args.quick, args.retrain_clip), time.perf_counter()
    for number, (_, command) in enumerate(plan):
        spent = time.perf_counter() - begin
        done, whole = sum(step.seconds for step in plan[:number]), sum(step.seconds for step in plan)
        left = f", about {spent * (whole / done - 1):.0f} s left" if done else ""
        print(f"\n[{number + 1}/{len(plan)}] {spent:.0f} s so far{left}\n$ python {shlex.join(command)}",
              flush=True)
        code = subprocess.run([sys.executable, *command]).returncode
        if code:
            raise InputError(f"{command[0]} stopped with exit status {code} in step {number + 1}")
    print(f"\n{table(args.runs)}\n\ncontact sheet: {sheet(args.runs)}\n"
          f"whole demo: {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
