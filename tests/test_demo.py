"""The demo's command lines parse in their scripts, and its table reads eval's files (CI runs the demo itself)."""
import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipwsss import demo
from clipwsss.cams.files import write_cam
from clipwsss.errors import InputError
from clipwsss.options import parse
from clipwsss.toy.__main__ import get_parser as toy_parser
from clipwsss.toy.world import draw_world


@pytest.mark.parametrize("quick", [False, True])
def test_commands_parse_and_chain(tmp_path, quick):
    seen = []
    for seconds, command in demo.steps(tmp_path, 3, quick, retrain_clip=True):
        assert seconds > 0
        if command[:2] == ["-m", "clipwsss.toy"]:
            args = toy_parser().parse_args(command[2:])
            assert args.out == tmp_path / "toy_clip.pt" if args.train_clip else args.draw == tmp_path / "toy" / "data"
            seen.append("clip" if args.train_clip else "draw")
            continue
        stage = Path(command[0]).stem
        args = parse(importlib.import_module(stage).get_parser(), command[1:], stage)
        assert os.path.samefile(command[0], demo.SCRIPTS / f"{stage}.py")
        assert args.dataset == "toy" and args.runs == tmp_path and args.data_root == tmp_path / "toy" / "data"
        seen.append(stage)
    assert list(dict.fromkeys(seen)) == ["clip", "draw", "train_cam", "train_prompt", "make_pseudo", "train_seg", "eval"]
    assert seen[-1] == "train_seg" and "--predict" in command


def test_table_reads_every_stage(tmp_path):
    runs = [{"folder": f"{tmp_path}/toy/{name}/x", "best": {"miou": float(i)}} for i, name in
            enumerate(("train_cam", "clims", "train_prompt", "semples", "make_pseudo"))]
    (tmp_path / "train.json").write_text(json.dumps({"runs": runs}))
    (tmp_path / "val.json").write_text(json.dumps({"folder": f"{tmp_path}/toy/train_seg/predictions", "best": {"miou": 9.0}}))
    lines = demo.table(tmp_path).splitlines()[2:]
    assert [float(line.split()[-1]) for line in lines] == [0, 1, 2, 3, 4, 9]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is no earlier demo"):
        demo.main(["--runs", str(tmp_path)])
    assert (tmp_path / "thesis.txt").exists()


def test_the_sheet_has_a_row_for_each_image(tmp_path, monkeypatch):
    folder = tmp_path / "toy"
    draw_world(folder / "data", 0, 2, 1)
    monkeypatch.setattr(demo, "SHOWN", 2)
    for name in ("train_00000", "train_00001"):
        for stage in ("train_cam", "train_prompt"):
            write_cam(folder / stage / "cams", name, np.array([0]), np.ones((1, 24, 24)))
        for kind in ("make_pseudo/masks", "train_seg/predicted"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.new("L", (96, 96), 1).save(folder / kind / f"{name}.png")
    picture = Image.open(demo.sheet(tmp_path))
    assert picture.size == (6 * 196 + 4, 18 + 2 * (192 + 4))
    assert picture.getpixel((4 + 196 + 96, 18 + 96)) == (210, 30, 30)  # the hottest colour: these CAMs are 1
