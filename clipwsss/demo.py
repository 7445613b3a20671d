"""The whole pipeline on the toy world: draws it, runs the five scripts and shows the result."""
import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from .cams.files import read_cam, resize_cam
from .datasets import build_dataset
from .datasets.base import read_mask
from .errors import InputError, run_script
from .pictures import colored, contact_sheet, heat, save
from .segment.predict import decide, probabilities
from .segment.segmenter import load_segmenter
from .toy.world import RECIPE, draw_world
from .toy.__main__ import main as toy_main

SCRIPTS = Path(__file__).resolve().parents[1]
FULL, QUICK = (800, 200), (120, 40)  # images drawn for training and held out
# Seconds each step takes on 2 cores, to say how much time is left; only their proportions matter.
SECONDS = (58, 32, 52, 38, 15, 45, 6, 6)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m clipwsss.demo", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--runs", type=Path, default=Path("runs/demo"), help="everything is written below this folder")
    add("--seed", type=int, default=0, help="seed of the world and of the training")
    add("--quick", action="store_true", help="a small world and few epochs, to see that it all runs")
    add("--retrain-clip", action="store_true", help="train the toy CLIP from nothing too (minutes)")
    return parser


def commands(runs: Path, seed: int, quick: bool, clip: Path | None) -> list[list[str]]:
    """The five scripts' command lines in order; CLIMS and SemPLeS run beside POLE, whose CAMs go on."""
    toy, folder = ["--dataset", "toy", "--runs", str(runs)], runs / "toy"
    seeded = [*toy, "--seed", str(seed)]
    guide = ["train_prompt.py", *seeded, *(["--clip", str(clip)] if clip else []),
             *(["--epochs", "1"] if quick else [])]
    stages = ["--match-epochs", "1", "--prompt-epochs", "1"] if quick else []
    cams = [str(folder / stage / "cams") for stage in ("train_cam", "clims", "train_prompt", "semples")]
    return [
        ["train_cam.py", *seeded, *(["--epochs", "3"] if quick else [])],
        [*guide, "--method", "clims", "--out", str(folder / "clims")],
        [*guide, "--method", "semples", "--out", str(folder / "semples"), *stages],
        [*guide, "--method", "pole"],
        ["make_pseudo.py", *seeded],
        ["train_seg.py", *seeded, *(["--epochs", "2"] if quick else [])],
        ["eval.py", *toy, "--cams", *cams, "--masks", str(folder / "make_pseudo" / "masks"),
         "--json", str(runs / "train.json")],
        ["eval.py", *toy, "--split", "val", "--masks", str(folder / "train_seg" / "predictions"),
         "--json", str(runs / "val.json")],
    ]


def table(runs: Path) -> str:
    """mIoU of every stage from eval's JSON files."""
    train, val = (json.loads((runs / f"{name}.json").read_text()) for name in ("train", "val"))
    found = {Path(item["folder"]).parent.name: item["best"]["miou"] for item in [*train["runs"], val]}
    rows = (("CAM", "train_cam"), ("CLIMS", "clims"), ("POLE", "train_prompt"), ("SemPLeS", "semples"),
            ("pseudo masks (from POLE)", "make_pseudo"), ("segmenter, new images", "train_seg"))
    lines = [f"{'stage':<26} mIoU %", "-" * 33]
    return "\n".join(lines + [f"{title:<26} {found[stage]:6.1f}" for title, stage in rows])


def sheet(runs: Path, data: Path) -> Path:
    """The contact sheet: image, CAM baseline, CAM guided, pseudo mask, prediction, truth."""
    dataset, folder, rows = build_dataset("toy", data, "train"), runs / "toy", []
    network = load_segmenter(folder / "train_seg" / "segmenter.pt").network
    for index, name in enumerate(dataset.names[:8]):
        image = dataset.load_image(index)
        cams = [read_cam(folder / stage / "cams", name) for stage in ("train_cam", "train_prompt")]
        scores = probabilities(network, dataset[index].image[None], flip=True)[0].numpy()
        predicted = decide(np.asarray(image), scores, crf=True)  # as train_seg.py predicts
        masks = [read_mask(folder / "make_pseudo" / "masks" / f"{name}.png"), predicted,
                 dataset.load_mask(index)]
        rows.append([image, *(heat(resize_cam(cam, image.size[::-1]).max(0)) for cam in cams),
                     *(colored(mask, dataset.palette) for mask in masks)])
    titles = ("image", "CAM baseline", "CAM guided", "pseudo mask", "prediction", "truth")
    save(contact_sheet(rows, titles), runs / "contact_sheet.png")
    return runs / "contact_sheet.png"


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    begin, data, clip = time.perf_counter(), args.runs / "toy" / "data", None
    if args.runs.exists():
        if not (data / RECIPE).exists():
            raise InputError(f"--runs {args.runs}: exists and is no earlier demo; name a new folder")
        shutil.rmtree(args.runs)
    draw_world(data, args.seed, *(QUICK if args.quick else FULL))
    if args.retrain_clip:
        clip = args.runs / "toy_clip.pt"
        training = ["--train-clip", "--out", str(clip), "--seed", str(args.seed)]
        print(f"$ python -m clipwsss.toy.world {shlex.join(training)}", flush=True)
        toy_main(training)
    steps = commands(args.runs, args.seed, args.quick, clip)
    start = time.perf_counter()
    for number, command in enumerate(steps):
        spent, done = time.perf_counter() - start, sum(SECONDS[:number])
        left = f", about {spent / done * sum(SECONDS[number:]):.0f} s left" if done else ""
        print(f"\n[{number + 1}/{len(steps)}] {time.perf_counter() - begin:.0f} s so far{left}\n"
              f"$ python {shlex.join(command)}", flush=True)
        code = subprocess.run([sys.executable, str(SCRIPTS / command[0]), *command[1:]]).returncode
        if code:
            raise InputError(f"{command[0]} stopped with exit status {code} in step {number + 1}")
    print(f"\n{table(args.runs)}\n\ncontact sheet: {sheet(args.runs, data)}\n"
          f"whole demo: {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
