"""The whole pipeline on the toy world: `python -m clipwsss.demo` draws it, runs the five scripts and shows the result."""
import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from .cam_files import read_cam, resize_cam
from .datasets import build_dataset
from .datasets.base import read_mask
from .errors import InputError, run_script
from .pictures import colored, contact_sheet, heat
from .segmenter import decide, load_segmenter, probabilities
from .toy import RECIPE, draw_world

SCRIPTS = Path(__file__).resolve().parents[1]
FULL, QUICK = (800, 200), (120, 40)  # images drawn for training and held out
# Seconds each step takes on 2 cores, to say how much time is left; only their proportions matter.
STEPS = {"train_cam": 58, "clims": 32, "semples": 52, "pole": 38, "make_pseudo": 15, "train_seg": 45, "eval": 12}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m clipwsss.demo", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"), help="everything is written below this folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world and of the training")
    parser.add_argument("--quick", action="store_true", help="a small world and few epochs, to see that it all runs")
    parser.add_argument("--retrain-clip", action="store_true", help="train the toy CLIP from nothing too (minutes)")
    return parser


def commands(runs: Path, seed: int, quick: bool, clip: Path | None) -> dict[str, list[str]]:
    """The five scripts' command lines in order; CLIMS and SemPLeS run beside POLE, whose CAMs go on."""
    toy = ["--dataset", "toy", "--runs", str(runs)]
    seeded = [*toy, "--seed", str(seed)]
    guide = ["train_prompt.py", *seeded, *(["--clip", str(clip)] if clip else [])]
    short = ["--epochs", "1"] if quick else []
    stages = ["--match-epochs", "1", "--prompt-epochs", "1"] if quick else []
    folder = runs / "toy"
    cams = [str(folder / stage / "cams") for stage in ("train_cam", "clims", "train_prompt", "semples")]
    return {
        "train_cam": ["train_cam.py", *seeded, *(["--epochs", "3"] if quick else [])],
        "clims": [*guide, "--method", "clims", "--out", str(folder / "clims"), *short],
        "semples": [*guide, "--method", "semples", "--out", str(folder / "semples"), *short, *stages],
        "pole": [*guide, "--method", "pole", *short],
        "make_pseudo": ["make_pseudo.py", *toy, "--seed", str(seed)],
        "train_seg": ["train_seg.py", *seeded, *(["--epochs", "2"] if quick else [])],
        "eval": ["eval.py", *toy, "--cams", *cams, "--masks", str(folder / "make_pseudo" / "masks"), "--json",
                 str(runs / "train.json")],
        "eval ": ["eval.py", *toy, "--split", "val", "--masks", str(folder / "train_seg" / "predictions"), "--json",
                  str(runs / "val.json")],
    }


def run(step: str, number: int, steps: list[str], command: list[str], begin: float) -> None:
    """Print a step's command line and the time left, and run it."""
    shares = [STEPS.get(name.strip(), 10) for name in steps]
    spent, done = time.perf_counter() - begin, sum(shares[:number])
    left = f", about {spent / done * sum(shares[number:]):.0f} s left" if done else ""
    print(f"\n[{number + 1}/{len(steps)}] {spent:.0f} s so far{left}\n$ python {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, str(SCRIPTS / command[0]), *command[1:]]).returncode
    if code:
        raise InputError(f"{command[0]} stopped with exit status {code} in step {step.strip()}")


def table(runs: Path) -> str:
    """mIoU of every stage from eval's JSON files."""
    train, val = (json.loads((runs / f"{name}.json").read_text()) for name in ("train", "val"))
    found = {Path(item["folder"]).parent.name: item["best"]["miou"] for item in [*train["runs"], val]}
    rows = (("CAM", "train_cam"), ("CLIMS", "clims"), ("POLE", "train_prompt"), ("SemPLeS", "semples"),
            ("pseudo masks (from POLE)", "make_pseudo"), ("segmenter, new images", "train_seg"))
    lines = [f"{'stage':<26} mIoU %", "-" * 33]
    return "\n".join(lines + [f"{title:<26} {found[stage]:6.1f}" for title, stage in rows])


def sheet(runs: Path, data: Path, count: int = 8) -> Path:
    """The contact sheet: image, CAM baseline, CAM guided, pseudo mask, prediction, truth."""
    dataset = build_dataset("toy", data, "train")
    folder, rows = runs / "toy", []
    network, _, _ = load_segmenter(folder / "train_seg" / "segmenter.pt")
    for index in range(min(count, len(dataset))):
        name, image = dataset.names[index], dataset.load_image(index)
        heats = []
        for stage in ("train_cam", "train_prompt"):
            cam = read_cam(folder / stage / "cams", name)
            heats.append(heat(resize_cam(cam, image.size[::-1]).max(0)))
        predicted = decide(np.asarray(image), probabilities(network, dataset[index].image[None])[0].numpy())
        masks = [read_mask(folder / "make_pseudo" / "masks" / f"{name}.png"), predicted, dataset.load_mask(index)]
        rows.append([image, *heats, *(colored(mask, dataset.palette) for mask in masks)])
    titles = ("image", "CAM baseline", "CAM guided", "pseudo mask", "prediction", "truth")
    path = runs / "contact_sheet.png"
    contact_sheet(rows, titles).save(path)
    return path


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    begin, data = time.perf_counter(), args.runs / "toy" / "data"
    if args.runs.exists():
        if not (data / RECIPE).exists():
            raise InputError(f"--runs {args.runs}: exists and is no earlier demo; name a new folder")
        shutil.rmtree(args.runs)
    draw_world(data, args.seed, *(QUICK if args.quick else FULL))
    clip = None
    if args.retrain_clip:
        from .toy import main as toy_main
        clip = args.runs / "toy_clip.pt"
        print(f"$ python -m clipwsss.toy --train-clip --out {clip} --seed {args.seed}", flush=True)
        toy_main(["--train-clip", "--out", str(clip), "--seed", str(args.seed)])
    steps = commands(args.runs, args.seed, args.quick, clip)
    for number, (step, command) in enumerate(steps.items()):
        run(step, number, list(steps), command, begin)
    picture = sheet(args.runs, data)
    print(f"\n{table(args.runs)}\n\ncontact sheet: {picture}\nwhole demo: {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
