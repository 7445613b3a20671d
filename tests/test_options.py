"""The shared command line: rules are defaults in their order, flags win, every rule names real flags."""
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import train_cam
import train_prompt
from clipwsss.errors import InputError
from clipwsss.options import PRESETS, apply_rules, parse, training_settings
from clipwsss.run import Run
from clipwsss.training import Training

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["train_cam", "train_prompt", "make_pseudo", "train_seg", "eval"]
STAGE_RULES = json.loads(PRESETS.read_text())
SETTINGS = [(stage, kind, name, value) for stage, rules in STAGE_RULES.items() for rule in rules
            for kind in ("when", "set") for name, values in rule[kind].items()
            for value in (values if kind == "when" and isinstance(values, list) else [values])]  # one of several


def prompt(*argv):
    return parse(train_prompt.get_parser(), ["--data-root", "x", *argv], "train_prompt")


def test_paper_defaults_by_method_and_dataset():
    clims = prompt("--method", "clims")
    assert (clims.w_fg, clims.w_bg, clims.w_suppress, clims.w_area) == (10, 24, 1, 0.2)
    assert (clims.suppress_threshold, clims.suppress_reduction) == (0.26, "sum")
    assert (clims.lr, clims.epochs) == (2.5e-4, 15)
    assert (clims.schedule, clims.class_prompt, clims.background_prompt) == ("poly", "name", "list")
    pole = prompt("--method", "pole")
    assert (pole.w_fg, pole.w_bg, pole.w_suppress) == (10, 24, 1)
    assert (pole.adapter, pole.epochs, pole.schedule) == ("learnable", 10, "cosine")
    assert (pole.weight_decay, pole.batch_size, pole.class_prompt) == (1e-4, 16, "word")
    semples = prompt("--method", "semples")
    assert (semples.w_fg, semples.w_bg, semples.w_prompt_class, semples.w_suppress) == (1, 2.4, 0.02, 0.05)
    assert (semples.optimizer, semples.batch_size, semples.lr) == ("adamw", 64, 6.4e-5)
    assert (semples.epochs, semples.w_area) == (60, 0)
    assert semples.background_template == "a photo of [C*30]." and semples.clip == "ViT-B/32"
    coco = prompt("--method", "semples", "--dataset", "coco14")
    assert (coco.w_bg, coco.w_prompt_class, coco.w_suppress, coco.lr) == (0.75, 0.01, 0.2, 2.4e-7)
    coco = prompt("--method", "clims", "--dataset", "coco14")
    assert (coco.w_fg, coco.w_bg, coco.w_suppress, coco.w_area) == (2, 14, 1.25 / 2, 0.2)
    assert (coco.suppress_threshold, coco.lr, coco.epochs) == (0.285, 5e-4, 8)


def test_any_pair_takes_the_background_sides_weights():
    both = prompt("--method", "pole", "--background-prompt", "learned")
    assert (both.class_prompt, both.background_prompt) == ("word", "learned")
    assert (both.w_suppress, both.suppress_threshold) == (0.05, 0)
    assert prompt("--method", "semples", "--background-prompt", "list").w_suppress == 1


def test_explicit_flags_win_over_rules():
    args = prompt("--method", "clims", "--lr", "0.5", "--w-suppress", "0")
    assert (args.lr, args.w_suppress) == (0.5, 0)


def rule(source: str, settings: dict, **when: object) -> dict:
    return {"when": when, "from": source, "set": settings}


def test_rules_apply_in_order_and_see_what_earlier_ones_set():
    rules = [rule("first", {"b": 2, "c": 2}, a=1), rule("second", {"c": 3}, b=2),
             rule("never", {"c": 4}, b=1), rule("too early", {"d": 5}, e=6), rule("last", {"e": 6}, a=1, c=3)]
    settings, set_by = apply_rules(rules, {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}, {})
    assert settings == {"a": 1, "b": 2, "c": 3, "d": 1, "e": 6}
    assert set_by == {"b": "first", "c": "second", "e": "last"}


def test_given_values_stand_and_decide_which_rules_apply():
    rules = [rule("first", {"b": 2, "c": 2}, a=1), rule("second", {"d": 3}, b=7)]
    settings, set_by = apply_rules(rules, {"a": 0, "b": 1, "c": 1, "d": 1}, {"a": 1, "b": 7})
    assert settings == {"a": 1, "b": 7, "c": 2, "d": 3} and set_by == {"c": "first", "d": "second"}


@pytest.mark.parametrize("stages, expected", [
    (["color", "crf"], 2), (("crf", "color"), 2), (("crf",), 1), ([], 1), ("color", 2), ("color crf", 1)])
def test_a_rule_about_a_list_asks_for_an_element(stages, expected):
    settings, _ = apply_rules([rule("x", {"n": 2}, stages="color")], {"stages": stages, "n": 1}, {})
    assert settings["n"] == expected


@pytest.mark.parametrize("kind, expected", [("list", 2), ("read", 2), ("none", 1)])
def test_a_rule_may_hold_for_one_of_several_values(kind, expected):
    settings, _ = apply_rules([rule("x", {"n": 2}, kind=["list", "read"])], {"kind": kind, "n": 1}, {})
    assert settings["n"] == expected


def test_args_say_what_set_each_setting(tmp_path):
    args = prompt("--method", "clims", "--lr", "0.5")
    assert args.set_by["lr"] == args.set_by["method"] == "the command line"
    assert args.set_by["w_bg"].startswith("CLIMS release README")
    assert args.set_by["split"] == "both papers train on the augmented split and report CAMs of train"
    assert "clip" not in args.set_by and "w_prompt_class" not in args.set_by  # the script's own defaults
    Run(tmp_path, vars(args))
    stored = json.loads((tmp_path / "args.json").read_text())
    assert stored["set_by"] == args.set_by and stored["w_bg"] == 24
    Run(tmp_path, {**vars(args), "set_by": {}}, resume=True)  # a reworded source is no other setting


def words_of(name: str, value: object) -> list[str]:
    """A setting as it is written on the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]


@pytest.mark.parametrize("stage, kind, name, value", SETTINGS)
def test_every_rule_names_real_flags_and_values_they_take(stage, kind, name, value):
    parser = importlib.import_module(stage).get_parser()
    assert name in vars(parser.parse_args([]))
    taken = getattr(parser.parse_args(words_of(name, value)), name)
    assert value in taken if kind == "when" and isinstance(taken, list) else taken == value
    assert type(taken) is type(value) or kind == "when"


def test_every_rule_says_when_whence_and_what():
    assert STAGE_RULES.keys() <= set(SCRIPTS) and len(SETTINGS) > 200
    rules = [item for rules in STAGE_RULES.values() for item in rules]
    assert all(item.keys() == {"when", "from", "set"} and all(item.values()) for item in rules)


def test_default_folders_chain_and_data_root_is_asked_for():
    args = parse(train_cam.get_parser(), ["--dataset", "toy"], "train_cam")
    assert args.out == Path("runs/toy/train_cam") and args.data_root == Path("runs/toy/data")
    with pytest.raises(InputError, match="--data-root: say where the voc12 data is"):
        parse(train_cam.get_parser(), [], "train_cam")


def test_the_training_record_is_what_the_flags_say():
    args = prompt("--method", "semples", "--warmup", "7")
    assert training_settings(args, "match", epochs=3) == Training(
        "match", epochs=3, lr=6.4e-5, optimizer="adamw", schedule="cosine", weight_decay=0.03, momentum=0.0, warmup=7)


def test_unknown_values_list_the_valid_ones():
    with pytest.raises(InputError, match="--method: 'clip' is none of .*did you mean clims"):
        prompt("--method", "clip")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_defaults_and_an_example(script, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "--dataset" in shown and "default:" in shown
    assert f"example:\n  python {script}.py " in shown


def default_of(flag: str, shown: str) -> str:
    """The default that a help text shows for a flag."""
    return shown.split(f"\n  {flag} ")[1].split("(default: ")[1].split(")")[0]


@pytest.mark.parametrize("argv, epochs, rate", [
    (["--method", "clims"], "15", "0.00025"), (["--method", "semples"], "60", "6.4e-05"),
    (["--dataset", "toy"], "3", "0.002"), (["--method", "clims", "--epochs", "9"], "15", "0.00025")])
def test_help_shows_the_value_in_force(argv, epochs, rate, capsys):
    with pytest.raises(SystemExit):
        parse(train_prompt.get_parser(), [*argv, "--help"], "train_prompt")
    shown = capsys.readouterr().out
    assert (default_of("--epochs", shown), default_of("--lr", shown)) == (epochs, rate)


def test_dry_run_prints_json_and_stops(tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        train_prompt.main(["--dataset", "toy", "--lr", "0.5", "--out", str(out), "--dry-run"])
    told = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0 and not out.exists()
    assert told["settings"]["lr"] == 0.5
    assert told["settings"]["w_bg"] == 1.0 and told["defaults"]["w_bg"] == 24.0
    assert told["set_by"]["lr"] == "the command line"
    assert told["set_by"]["w_bg"].startswith("toy world, chosen on training images")


def test_a_script_prints_one_line_for_bad_input(tmp_path):
    command = [sys.executable, ROOT / "train_cam.py", "--dataset", "voc12", "--data-root", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "none") in done.stderr
