"""The demo's command lines parse in their scripts, and its table reads eval's files (CI runs the demo itself)."""
import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipwsss import demo
from clipwsss.cams.cam_files import write_cam
from clipwsss.errors import InputError
from clipwsss.options import parse
from clipwsss.toy.__main__ import get_parser as toy_parser
from clipwsss.toy.world import draw_world


def test_a_command_is_printed_and_a_failure_ends_the_demo(capfd):
    demo.run_command(["-c", "print(1)"])
    assert capfd.readouterr().out.splitlines() == ["", "$ python -c 'print(1)'", "1"]
    with pytest.raises(InputError, match="^`python -c 'raise SystemExit.3.'` stopped with exit status 3, see above$"):
        demo.run_command(["-c", "raise SystemExit(3)"])


@pytest.mark.smoke
@pytest.mark.parametrize("quick", [False, True])
def test_commands_parse_and_chain(tmp_path, quick):
    """In an order in which each finds what it reads, and with a run for every stage of the table."""
    seen, runs = [], []
    for command in demo.commands(tmp_path, 3, quick, retrain_clip=True):
        if command[:2] == ["-m", "clipwsss.toy"]:
            args = toy_parser().parse_args(command[2:])
            assert args.out == tmp_path / "toy_clip.pt" if args.train_clip else args.draw == tmp_path / "toy" / "data"
            seen.append("clip" if args.train_clip else "draw")
            continue
        stage = Path(command[0]).stem
        args = parse(importlib.import_module(stage).get_parser(), command[1:], stage)
        assert os.path.samefile(command[0], demo.SCRIPTS / f"{stage}.py")
        assert args.dataset == "toy" and args.runs == tmp_path and args.data_root == tmp_path / "toy" / "data"
        seen.append("predict" if "--predict" in command else stage)
        runs.append(args.out.name)
    assert seen == ["clip", "draw", "train_cam", "train_cam", "train_prompt", "train_prompt", "train_prompt", "make_pseudo",
                    "train_seg", "eval", "predict"]
    assert {stage.run for stage in demo.DEMO_STAGES} == set(runs) - {"eval"}


@pytest.fixture
def finished(tmp_path):
    """Results of all the demo's runs: each stage 10 points above the one before it in the table."""
    for number, stage in enumerate(demo.DEMO_STAGES):
        folder = tmp_path / "toy" / stage.run
        folder.mkdir(parents=True)
        result = {"miou": 30.0 + 10 * number, "iou": {"background": 5.0, "boat": 16.04, "car": 70.0},
                  "taken_from": {"boat": {"background": 71.6}}, "taken_for": {"boat": {}}}
        (folder / "result.json").write_text(json.dumps(result))
    return tmp_path


def test_the_table_says_what_each_stage_added_to_which(finished):
    lines = demo.stage_table(finished)[2:]
    assert lines[0] == "CAM                        30.0" and lines[4].split() == ["POLE", "50.0", "+20.0", "CAM"]
    assert lines[6].split()[-2:] == ["+30.0", "CAM"] and lines[8].split()[-2:] == ["+20.0", "POLE"]
    assert lines[1::2] == [f"  {stage.why}" for stage in demo.DEMO_STAGES] and max(map(len, lines)) < 80


def test_the_worst_class_is_explained_by_the_confusions(finished):
    told = demo.worst_class(finished)
    assert told.startswith("Worst class: boat, IoU 16.0. Of the pixels predicted as boat, 72 % background in truth. ")
    assert "predicted as another class: nothing else. " in told


def test_a_folder_without_the_demos_mark_is_left_alone(tmp_path):
    """Even where it holds a toy world, which every script with --dataset toy draws there."""
    for name in ("voc12/train_cam/generator.pt", "toy/data/toy.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    message = f"^--runs {tmp_path}: exists and was not made by the demo; name a new folder$"
    with pytest.raises(InputError, match=message):
        demo.main(["--runs", str(tmp_path)])
    assert sorted(tmp_path.rglob("*")) == before


def test_the_demo_deletes_its_own_toy_runs_alone(tmp_path, monkeypatch):
    """In a folder that it marked before anything else: here each command finds the mark and no earlier run."""
    runs = tmp_path / "new" / "runs"
    found = []

    def stop(command):
        found.append(sorted(path.name for path in runs.iterdir()))
        (runs / "toy" / "train_cam").mkdir(parents=True)
        raise InputError("stopped")

    monkeypatch.setattr(demo, "run_command", stop)
    for _ in range(2):
        with pytest.raises(InputError, match="stopped"):
            demo.main(["--runs", str(runs)])
        (runs / "voc12").mkdir(exist_ok=True)
    assert found == [[demo.MARK], ["voc12", demo.MARK]]


def test_the_sheet_has_a_row_for_each_image(tmp_path, monkeypatch):
    folder = tmp_path / "toy"
    draw_world(folder / "data", 0, 2, 1)
    monkeypatch.setattr(demo, "SHEET_IMAGES", 2)
    for name in ("train_00000", "train_00001"):
        for stage in ("train_cam", "clip", "train_prompt"):
            write_cam(folder / stage / "cams", name, np.array([0]), np.ones((1, 24, 24)))
        for kind in ("make_pseudo/masks", "train_seg/predicted"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.new("L", (96, 96), 1).save(folder / kind / f"{name}.png")
    picture = Image.open(demo.draw_contact_sheet(tmp_path))
    assert picture.size == (7 * 196 + 4, 18 + 2 * (192 + 4) + 18)
    red, green, blue = picture.getpixel((4 + 196 + 96, 18 + 96))  # the hottest colour over the image: these CAMs are 1
    assert red > 126 and red > max(green, blue)
    assert picture.getpixel((10, picture.height - 12)) == (128, 0, 0)  # the first class's colour in the legend
