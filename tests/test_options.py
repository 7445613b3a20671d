"""The shared command line: presets as defaults, explicit flags win, every preset names real flags."""
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import train_cam
import train_prompt
from clipwsss.errors import InputError
from clipwsss.options import PRESETS, parse

ROOT = Path(__file__).resolve().parents[1]


def prompt(*argv):
    return parse(train_prompt.get_parser(), ["--data-root", "x", *argv], "train_prompt")


def test_paper_defaults_by_method_and_dataset():
    clims = prompt("--method", "clims")
    assert (clims.w_fg, clims.w_bg, clims.w_suppress, clims.w_area) == (10, 24, 1, 0.2)
    assert (clims.suppress_threshold, clims.suppress_reduction, clims.lr, clims.epochs) == (0.26, "sum", 2.5e-4, 15)
    assert (clims.schedule, clims.class_prompt, clims.background_prompt) == ("poly", "name", "list")
    pole = prompt("--method", "pole")
    assert (pole.w_fg, pole.w_bg, pole.w_suppress, pole.adapter, pole.epochs) == (10, 25, 1, "learnable", 10)
    assert (pole.schedule, pole.weight_decay, pole.batch_size, pole.class_prompt) == ("cosine", 1e-4, 16, "word")
    semples = prompt("--method", "semples")
    assert (semples.w_fg, semples.w_bg, semples.w_prompt_class, semples.w_suppress) == (1, 2.4, 0.02, 0.05)
    assert (semples.optimizer, semples.batch_size, semples.lr, semples.epochs, semples.w_area) == ("adamw", 64, 5e-4, 60, 0)
    assert semples.background_length == 30 and semples.clip == "ViT-B/32"
    coco = prompt("--method", "semples", "--dataset", "coco14")
    assert (coco.w_bg, coco.w_prompt_class, coco.w_suppress, coco.lr) == (0.75, 0.01, 0.2, 5e-6)
    coco = prompt("--method", "clims", "--dataset", "coco14")
    assert (coco.w_fg, coco.w_bg, coco.w_suppress, coco.w_area, coco.suppress_threshold) == (2, 14, 1.25, 0.2, 0.285)
    assert (coco.lr, coco.epochs) == (5e-4, 8)


def test_any_pair_takes_the_background_sides_weights():
    both = prompt("--method", "pole", "--background-prompt", "learned")
    assert (both.class_prompt, both.background_prompt, both.w_suppress, both.suppress_threshold) == ("word", "learned", 0.05, 0)
    assert prompt("--method", "semples", "--background-prompt", "list").w_suppress == 1


def test_explicit_flags_win_over_presets():
    args = prompt("--method", "clims", "--lr", "0.5", "--w-suppress", "0")
    assert (args.lr, args.w_suppress) == (0.5, 0)


def test_default_folders_chain_and_data_root_is_asked_for():
    args = parse(train_cam.get_parser(), ["--dataset", "toy"], "train_cam")
    assert args.out == Path("runs/toy/train_cam") and args.data_root == Path("runs/toy/data")
    with pytest.raises(InputError, match="--data-root: say where the voc12 data is"):
        parse(train_cam.get_parser(), [], "train_cam")


def test_unknown_values_list_the_valid_ones(capsys):
    with pytest.raises(SystemExit):
        prompt("--method", "clip")
    assert "clims" in capsys.readouterr().err


def test_every_preset_names_real_flags_of_its_script():
    presets = json.loads(PRESETS.read_text())
    for stage, rows in presets.items():
        parser = __import__(stage).get_parser()
        flags = {action.dest for action in parser._actions}
        for key, preset in rows.items():
            assert set(preset) <= flags, (stage, key)


@pytest.mark.parametrize("script", ["train_cam", "train_prompt", "make_pseudo", "train_seg", "eval"])
def test_help_shows_defaults(script, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "--dataset" in shown and "default:" in shown


def test_a_script_prints_one_line_for_bad_input(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "train_cam.py", "--dataset", "voc12", "--data-root", tmp_path / "none"],
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "none") in done.stderr
