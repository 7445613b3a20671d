"""Run the whole pipeline on the toy world, a small drawn data set.

The demo draws a toy world, runs the five scripts on it one after another, and prints each stage's mIoU, what
the stage added to it, and what the stage does. The runs are the classifier's CAMs, CLIP's own maps, POLE,
SemPLeS, and both papers together with the pseudo masks and the segmenter.
"""
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .cams.cam_files import read_cam, resize_cam
from .datasets import build_dataset
from .datasets.image_files import read_mask
from .errors import InputError, run_script
from .files import read_json, write_text
from .flags import Parser, whole
from .pictures import contact_sheet, heat, overlay, save, with_legend
from .report.page import compare

SCRIPTS = Path(__file__).resolve().parents[1]
SHEET_IMAGES = 6  # images in the contact sheet
MARK = "written_by_clipwsss_demo.txt"  # this file marks a folder that the demo made


class DemoStage(NamedTuple):
    """A stage in the demo's table: folder, title, the run it is compared with, and what it changes."""
    run: str
    title: str
    against: str | None
    why: str


DEMO_STAGES = (
    DemoStage("train_cam", "CAM", None,
              "trained on tags; maps also cover the usual background of a class"),
    DemoStage("clip", "CLIP's own maps", "train_cam",
              "nothing is trained: CLIP compares each patch with names and backgrounds"),
    DemoStage("pole", "POLE", "train_cam",
              "CLIP guides the classifier by each image's word and a list of backgrounds"),
    DemoStage("semples", "SemPLeS", "train_cam",
              "CLIP guides it by class names and learned background prompts"),
    DemoStage("train_prompt", "both", "pole",
              "words and prompts come from CLIP's own maps, and the maps are joined"),
    DemoStage("make_pseudo", "pseudo masks of both", "train_prompt",
              "a random walk over colours carries the maps to the edges"),
    DemoStage("train_seg", "segmenter, new images", "make_pseudo",
              "trained on the pseudo masks; it reads no tags"),
)


def get_parser() -> Parser:
    """The command's flags."""
    parser = Parser(prog="python -m clipwsss.demo", description=__doc__)
    add = parser.add_argument
    add("--runs", type=Path, default=Path("runs/demo"),
        help="folder for everything that the demo writes: a new one, or that of an earlier demo, of which "
        "RUNS/toy is then deleted")
    add("--seed", type=whole(0, 2**32 - 1), default=0, help="seed of the toy world and of all training")
    add("--quick", action="store_true",
        help="draw fewer images and train for fewer epochs: a check that all stages run")
    add("--retrain-clip", action="store_true",
        help="first train the toy CLIP from scratch, which takes minutes")
    return parser


def commands(runs: Path, seed: int, quick: bool, retrain_clip: bool) -> list[list[str]]:
    """The demo's command lines without `python`, in the order in which they run."""
    folder = runs / "toy"
    clip_file = runs / "toy_clip.pt"
    toy = ["--dataset", "toy", "--runs", runs]
    toy_seeded = [*toy, "--seed", seed]
    clip = ["--clip", clip_file] if retrain_clip else []
    guided = [*toy_seeded, *clip]
    world_size = ["--n-train", 480, "--n-val", 120]
    cam_epochs = []
    seg_epochs = []
    prompt_epochs = []
    match_epochs = []
    if quick:
        world_size = ["--n-train", 120, "--n-val", 40]
        cam_epochs = ["--epochs", 3]
        seg_epochs = ["--epochs", 2]
        guided += ["--epochs", 1]
        prompt_epochs = ["--prompt-epochs", 1]
        match_epochs = ["--match-epochs", 1]
    images = [folder / "data" / "JPEGImages" / f"train_{number:05d}.jpg" for number in range(SHEET_IMAGES)]

    def script(name: str, *flags: object) -> list[str]:
        return [os.path.relpath(SCRIPTS / name), *map(str, flags)]

    def draw_or_train(*flags: object) -> list[str]:
        return ["-m", "clipwsss.toy", *map(str, flags)]

    steps = []
    if retrain_clip:
        steps.append(draw_or_train("--train-clip", "--seed", seed, "--out", clip_file))
    steps += [
        draw_or_train("--draw", folder / "data", "--seed", seed, *world_size),
        script("train_cam.py", *toy_seeded, *cam_epochs),
        script("train_cam.py", *toy_seeded, *clip, "--generator", "clip", "--out", folder / "clip"),
        script("train_prompt.py", *guided, "--method", "pole", "--out", folder / "pole"),
        script("train_prompt.py", *guided, "--method", "semples", *prompt_epochs, *match_epochs,
               "--out", folder / "semples"),
        script("train_prompt.py", *guided, "--method", "both", *prompt_epochs,
               "--cams", folder / "clip" / "cams"),
        script("make_pseudo.py", *toy_seeded),
        script("train_seg.py", *toy_seeded, *seg_epochs),
        script("eval.py", *toy, "--split", "val", "--masks", folder / "train_seg" / "predictions"),
        script("train_seg.py", *toy, "--predict", *images),
    ]
    return steps


def start_folder(runs: Path) -> None:
    """Make the demo's folder and mark it, or delete the folder "toy" of an earlier demo in it.

    InputError where `runs` exists without the mark: what lies in it is the user's. Whatever a user has put
    beside "toy" in a marked folder stays too.
    """
    mark = runs / MARK
    if not mark.is_file():
        if runs.exists():
            raise InputError(f"--runs {runs}: exists and was not made by the demo; name a new folder")
        runs.mkdir(parents=True)
        write_text("clipwsss.demo made this folder. A later demo here first deletes its folder toy.\n", mark)
    if (runs / "toy").exists():
        shutil.rmtree(runs / "toy")


def run_command(command: Sequence[str]) -> None:
    """Print a command line and run it; InputError where it fails."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, *command]).returncode
    if code:
        raise InputError(f"`python {shlex.join(command)}` stopped with exit status {code}, see above")


def run_result(runs: Path, run: str) -> dict:
    """The result.json that a run of the demo ended with."""
    return read_json(runs / "toy" / run / "result.json")


def stage_table(runs: Path) -> list[str]:
    """Two lines for each stage: its mIoU, what it added to which other stage, and what it changes."""
    miou = {stage.run: run_result(runs, stage.run)["miou"] for stage in DEMO_STAGES}
    titles = {stage.run: stage.title for stage in DEMO_STAGES}
    lines = ["stage                    mIoU %   added  to", "-" * 63]
    for stage in DEMO_STAGES:
        line = f"{stage.title:<24} {miou[stage.run]:6.1f}"
        if stage.against:
            added = miou[stage.run] - miou[stage.against]
            line += f" {added:+7.1f}  {titles[stage.against]}"
        lines += [line, f"  {stage.why}"]
    return lines


def worst_class(runs: Path) -> str:
    """A line on the segmenter's worst class: what its pixels are in truth, and what they are taken for."""
    result = run_result(runs, "train_seg")
    classes = [name for name in result["iou"] if name != "background"]
    worst = min(classes, key=lambda name: result["iou"][name])

    def listed(shares: dict) -> str:
        return ", ".join(f"{share:.0f} % {name}" for name, share in shares.items()) or "nothing else"

    return (f"Worst class: {worst}, IoU {result['iou'][worst]:.1f}. Of the pixels predicted as {worst}, "
            f"{listed(result['taken_from'][worst])} in truth. Of the true pixels of {worst}, predicted as "
            f"another class: {listed(result['taken_for'][worst])}. A class is drawn on its own background in "
            "3 of 4 images, so its tag teaches that background too.")


def draw_contact_sheet(runs: Path) -> Path:
    """Draw the contact sheet: a row of pictures for each image and, below, a legend of the classes."""
    folder = runs / "toy"
    dataset = build_dataset("toy", folder / "data", "train")
    rows = []
    for index, name in enumerate(dataset.names[:SHEET_IMAGES]):
        image = dataset.load_image(index)
        row = [image]
        for stage in ("train_cam", "clip", "train_prompt"):
            cam = resize_cam(read_cam(folder / stage / "cams", name), image.size[::-1])
            row.append(heat(cam.max(0), image))
        pseudo = read_mask(folder / "make_pseudo" / "masks" / f"{name}.png")
        predicted = read_mask(folder / "train_seg" / "predicted" / f"{name}.png")
        for mask in (pseudo, predicted, dataset.load_mask(index)):
            row.append(overlay(image, mask, dataset.palette, 0.7))
        rows.append(row)
    titles = ("image", "classifier's CAM", "CLIP's own map", "both", "pseudo mask", "prediction", "truth")
    legend = list(zip(dataset.palette[1:], dataset.classes))
    path = runs / "contact_sheet.png"
    save(with_legend(contact_sheet(rows, titles), legend, len(legend)), path)
    return path


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    begin = time.perf_counter()
    start_folder(args.runs)
    for command in commands(args.runs, args.seed, args.quick, args.retrain_clip):
        run_command(command)
    page = args.runs / "report.html"
    explained = worst_class(args.runs)
    compare([args.runs / "toy" / stage.run for stage in DEMO_STAGES], page, [explained])
    sheet = draw_contact_sheet(args.runs)
    print("", *stage_table(args.runs), "", explained, "", f"contact sheet: {sheet}",
          f"report of all stages: {page}", f"time: {time.perf_counter() - begin:.0f} s", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
