"""The demo's command lines parse in their scripts, and its table reads eval's files (CI runs the demo itself)."""
import importlib
import json

import pytest

from clipwsss import demo
from clipwsss.errors import InputError
from clipwsss.options import parse


@pytest.mark.parametrize("quick", [False, True])
def test_commands_parse_and_chain(tmp_path, quick):
    seen = []
    steps = demo.commands(tmp_path, 3, quick, tmp_path / "clip.pt")
    assert len(steps) == len(demo.SECONDS)
    for script, *argv in steps:
        stage = script.removesuffix(".py")
        args = parse(importlib.import_module(stage).get_parser(), argv, stage)
        assert args.dataset == "toy" and args.runs == tmp_path and args.data_root == tmp_path / "toy" / "data"
        seen.append(stage)
    assert list(dict.fromkeys(seen)) == ["train_cam", "train_prompt", "make_pseudo", "train_seg", "eval"]


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
