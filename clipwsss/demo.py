"""The whole pipeline on the toy world: draws it, runs the five scripts, tells what each added and why."""
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .cams.cam_files import read_cam, resize_cam
from .datasets import build_dataset
from .datasets.base import read_mask
from .errors import InputError, run_script
from .flags import Parser, whole
from .pictures import contact_sheet, heat, overlay, save, with_legend
from .report.page import compare
from .toy.world import RECIPE

SCRIPTS = Path(__file__).resolve().parents[1]
CORES = 2  # that the steps' seconds are told for
SHOWN = 6  # images of the contact sheet


class Stage(NamedTuple):
    """A run of the demo: what it is called, the run it is compared with, and why it differs from that."""
    run: str
    title: str
    against: str | None
    why: str


STAGES = (
    Stage("train_cam", "CAM", None, "tags alone: a class's usual ground tells its tag too, so maps cover it"),
    Stage("clims", "CLIMS", "train_cam", "POLE's control: CLIP reads names, and a list of grounds"),
    Stage("train_prompt", "POLE", "clims", "the word nearest to each image for the name, and adapters"),
    Stage("control", "SemPLeS without prompts", "train_cam", "SemPLeS' control: CLIP reads names alone"),
    Stage("semples", "SemPLeS", "control", "learned background prompts, which maps must not match"),
    Stage("make_pseudo", "pseudo masks of POLE", "train_prompt", "a walk over colours carries maps to edges"),
    Stage("train_seg", "segmenter, new images", "make_pseudo", "learned from the masks; it is given no tags"),
)


class Step(NamedTuple):
    """What follows `python`, and its seconds, of which only the proportions matter."""
    seconds: int
    command: list[str]


def get_parser() -> Parser:
    parser = Parser(prog="python -m clipwsss.demo", description=__doc__)
    add = parser.add_argument
    add("--runs", type=Path, default=Path("runs/demo"), help="everything is written below this folder")
    add("--seed", type=whole(0, 2**32 - 1), default=0, help="seed of the world and of the training")
    add("--quick", action="store_true", help="a small world and few epochs, to see that it all runs")
    add("--retrain-clip", action="store_true", help="train the toy CLIP from nothing too (minutes)")
    return parser


def plan(runs: Path, seed: int, quick: bool, retrain_clip: bool) -> list[list[list[Step]]]:
    """The whole demo's command lines, round by round: lanes of steps that run side by side.

    POLE's CAMs go on to masks and a segmenter, SemPLeS runs beside.
    """
    folder, clip = runs / "toy", runs / "toy_clip.pt"
    seeded, toy = ["--seed", seed], ["--dataset", "toy", "--runs", runs]
    own_clip = ["--clip", clip] if retrain_clip else []
    guide = [*toy, *seeded, *own_clip, *(["--epochs", 1] if quick else [])]
    shown = [folder / "data" / "JPEGImages" / f"train_{number:05d}.jpg" for number in range(SHOWN)]

    def step(seconds: int, name: str, *flags: object) -> Step:
        start = ["-m", name] if name == "clipwsss.toy" else [os.path.relpath(SCRIPTS / name)]
        return Step(seconds, [*start, *map(str, flags)])

    control = ["--method", "semples", "--background-prompt", "none", "--match-epochs", 0]
    fewer = ["--match-epochs", 1, "--prompt-epochs", 1] if quick else []
    return [[[
        *([step(240, "clipwsss.toy", "--train-clip", *seeded, "--out", clip)] if retrain_clip else []),
        step(10, "clipwsss.toy", "--draw", folder / "data", *seeded,
             "--n-train", 120 if quick else 480, "--n-val", 40 if quick else 120),
        step(40, "train_cam.py", *toy, *seeded, *(["--epochs", 3] if quick else [])),
    ]], [[
        step(45, "train_prompt.py", *guide, "--method", "pole"),
        step(18, "make_pseudo.py", *toy, *seeded),
        step(45, "train_seg.py", *toy, *seeded, *(["--epochs", 2] if quick else [])),
        step(5, "eval.py", *toy, "--split", "val", "--masks", folder / "train_seg" / "predictions"),
        step(6, "train_seg.py", *toy, "--predict", *shown),
    ], [
        step(80, "train_prompt.py", *guide, "--method", "semples", *fewer, "--out", folder / "semples"),
        step(40, "train_prompt.py", *guide, *control, "--out", folder / "control"),
    ], [
        step(42, "train_prompt.py", *guide, "--method", "clims", "--out", folder / "clims"),
    ]]]


class Clock:
    """Tells how long the demo has taken and, by its plan, what is left."""

    def __init__(self, rounds: Sequence[Sequence[Sequence[Step]]]):
        self.begin, self.done, self.lock = time.perf_counter(), 0.0, threading.Lock()
        self.whole = sum(step.seconds / min(CORES, len(lanes))
                         for lanes in rounds for lane in lanes for step in lane)

    def spent(self) -> float:
        """Seconds since the demo's start."""
        return time.perf_counter() - self.begin

    def tell(self, command: Sequence[str]) -> None:
        """Print that a command starts."""
        left = f", about {self.spent() * (self.whole / self.done - 1):.0f} s left" if self.done else ""
        print(f"\n[{self.spent():.0f} s so far{left}]\n$ python {shlex.join(command)}", flush=True)

    def add(self, seconds: float) -> None:
        """Planned seconds are over, in whatever lane."""
        with self.lock:
            self.done += seconds


def run_side_by_side(lanes: Sequence[Sequence[Step]], clock: Clock) -> None:
    """Run the lanes at the same time, sharing the cores; of several, output comes when a command has ended.

    InputError on the first command that fails; the other lanes end with the command they are at.
    """
    threads, failed = max(1, (os.cpu_count() or 1) // len(lanes)), threading.Event()
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    output = None if len(lanes) == 1 else subprocess.PIPE

    def run_lane(lane: Sequence[Step]) -> None:
        for step in lane:
            if failed.is_set():
                return
            clock.tell(step.command)
            answer = subprocess.run([sys.executable, *step.command], stdout=output, text=True,
                                    stderr=subprocess.STDOUT if output else None, env=environment)
            if output:
                print(f"\n{step.command[0]} of {clock.spent():.0f} s:\n{answer.stdout.rstrip()}", flush=True)
            if answer.returncode:
                failed.set()
                raise InputError(f"{step.command[0]} stopped with exit status {answer.returncode}, see above")
            clock.add(step.seconds / min(CORES, len(lanes)))

    with ThreadPoolExecutor(len(lanes)) as pool:
        list(pool.map(run_lane, lanes))


def result_of(runs: Path, run: str) -> dict:
    """What a run of the demo recorded at its end."""
    return json.loads((runs / "toy" / run / "result.json").read_text())


def table(runs: Path) -> list[str]:
    """A line for every stage: its mIoU, what it added to which other one, and why."""
    miou, titles = {stage.run: result_of(runs, stage.run)["miou"] for stage in STAGES}, {}
    lines = ["stage                    mIoU %   added  to", "-" * 63]
    for run, title, against, why in STAGES:
        titles[run] = title
        added = f"{miou[run] - miou[against]:+7.1f}  {titles[against]}" if against else ""
        lines += [f"{title:<24} {miou[run]:6.1f} {added}".rstrip(), f"  {why}"]
    return lines


def worst_class(runs: Path) -> str:
    """The segmenter's worst class and the classes that its pixels and its errors belong to."""
    figures = result_of(runs, "train_seg")
    worst = min((name for name in figures["iou"] if name != "background"), key=figures["iou"].get)

    def listed(shares: dict) -> str:
        return ", ".join(f"{share:.0f} % {other}" for other, share in shares.items()) or "nothing else"

    return (f"worst class: {worst}, IoU {figures['iou'][worst]:.1f}. Of what is labelled {worst}, "
            f"{listed(figures['taken_from'][worst])} in truth; of its own pixels, taken for: "
            f"{listed(figures['taken_for'][worst])}. Every class stands on its own ground in 3 of 4 images, "
            "so its tag teaches that ground too.")


def sheet(runs: Path) -> Path:
    """The contact sheet: image, CAM baseline, CAM guided, pseudo mask, prediction, truth; a legend below."""
    folder, rows = runs / "toy", []
    dataset = build_dataset("toy", folder / "data", "train")
    for index, name in enumerate(dataset.names[:SHOWN]):
        image = dataset.load_image(index)
        cams = [read_cam(folder / stage / "cams", name) for stage in ("train_cam", "train_prompt")]
        masks = [read_mask(folder / "make_pseudo" / "masks" / f"{name}.png"),
                 read_mask(folder / "train_seg" / "predicted" / f"{name}.png"), dataset.load_mask(index)]
        rows.append([image, *(heat(resize_cam(cam, image.size[::-1]).max(0), image) for cam in cams),
                     *(overlay(image, mask, dataset.palette, 0.7) for mask in masks)])
    titles = ("image", "CAM baseline", "CAM guided", "pseudo mask", "prediction", "truth")
    legend = list(zip(dataset.palette[1:], dataset.classes))
    save(with_legend(contact_sheet(rows, titles), legend, len(legend)), runs / "contact_sheet.png")
    return runs / "contact_sheet.png"


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if args.runs.exists():
        if not (args.runs / "toy" / "data" / RECIPE).exists():
            raise InputError(f"--runs {args.runs}: exists and is no earlier demo; name a new folder")
        shutil.rmtree(args.runs)
    rounds = plan(args.runs, args.seed, args.quick, args.retrain_clip)
    clock = Clock(rounds)
    for lanes in rounds:
        run_side_by_side(lanes, clock)
    lines, page = [*table(args.runs), "", worst_class(args.runs)], args.runs / "report.html"
    compare([args.runs / "toy" / stage.run for stage in STAGES], page, [worst_class(args.runs)])
    print("", *lines, "", f"contact sheet: {sheet(args.runs)}", f"all stages side by side: {page}",
          f"whole demo: {clock.spent():.0f} s", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
