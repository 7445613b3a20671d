"""The shared command line: preset values are defaults, flags replace them, --dry-run says what set a value."""
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train_cam
import train_prompt
from clipwsss.errors import InputError
from clipwsss.guidance.choices import WordChoices
from clipwsss.guidance.regions import Regions
from clipwsss.options import parse, training_settings
from clipwsss.run import Run
from clipwsss.training import Training

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["train_cam", "train_prompt", "make_pseudo", "train_seg", "eval"]


def prompt(*argv):
    return parse(train_prompt.get_parser(), ["--data-root", "x", *argv], "train_prompt")


@pytest.mark.smoke
def test_flags_replace_preset_values_and_set_by_says_what_set_each():
    args = prompt("--method", "clims", "--lr", "0.5", "--w-suppress=0", "--no-flip")
    assert (args.lr, args.w_suppress, args.w_bg, args.flip) == (0.5, 0, 24, False)
    for name in ("lr", "method", "w_suppress", "flip"):
        assert args.set_by[name] == "the command line", name
    assert args.set_by["w_bg"].startswith("presets.CLIMS: CLIMS' release")
    assert args.set_by["split"] == "presets.DATA_SET_VALUES" and args.split == "train_aug"
    assert "clip" not in args.set_by and "w_prompt_class" not in args.set_by  # neutral defaults


def test_another_background_prompt_needs_its_own_weights(tmp_path):
    flags = ["--dataset", "folder", "--data-root", str(tmp_path / "none"), "--runs", str(tmp_path / "runs"),
             "--method", "pole", "--background-prompt", "learned"]
    with pytest.raises(InputError, match="--method pole has settings for 'list' only; give --w-suppress, "):
        train_prompt.main(flags)
    flags += ["--w-suppress", "0.05", "--suppress-threshold", "0"]
    with pytest.raises(InputError, match="give --suppress-reduction, --prompt-epochs too"):
        train_prompt.main(flags)
    with pytest.raises(InputError, match="none"):  # the settings are there, the data is not
        train_prompt.main([*flags, "--suppress-reduction", "mean", "--prompt-epochs", "1"])
    assert not list(tmp_path.iterdir())


def test_flags_that_would_be_ignored_are_refused(tmp_path):
    data = ["--dataset", "folder", "--data-root", str(tmp_path / "none"), "--runs", str(tmp_path / "runs")]
    for flags, told in (
            (["--method", "pole", "--joint"], "--joint: only class prompts that learn"),
            (["--method", "coop", "--joint", "--prompts", "class_prompts.pt"], "--joint: only class prompts"),
            (["--method", "clims", "--prompts", "prompts.json"], "--prompts: --class-prompt name takes no prompts"),
            (["--method", "clims", "--reselect-every", "1"], "--reselect-every: --class-prompt name chooses no"),
            (["--method", "pole", "--background-prompt", "none", "--background-prompts", "b.pt"],
             "--background-prompts: --background-prompt none repels nothing"),
            (["--method", "semples", "--background-words", "w.txt"], "--background-words: --background-prompt learned"),
            (["--method", "coop", "--maps", "clip"], "--maps clip: no generator learns together with class prompts"),
            (["--method", "coop", "--no-joint"], "--class-prompt learned: --method coop has no epochs .* give --prompt-epochs"),
            (["--maps", "clip", "--scales", "1"], "--scales: --maps clip tunes no generator; leave the flag out"),
            (["--maps", "clip", "--prompt-epochs", "3"], "--prompt-epochs: no prompt is learned here"),
            (["--preset", "quick", "--prompt-lr", "1"], "--prompt-lr: no prompt is learned here"),
            (["--maps", "clip", "--epochs", "3"], "--epochs: --maps clip tunes no generator; leave the flag out"),
            (["--maps", "clip", "--w-suppress", "1"], "--w-suppress: --maps clip tunes no generator"),
            (["--method", "pole", "--box", "0.4"], "--box: --maps generator makes no maps of CLIP, except for --cams clip"),
            (["--map-template", "{}"], "--map-template: --maps generator makes no maps of CLIP")):
        with pytest.raises(InputError, match=told):
            train_prompt.main([*data, *flags])
    assert not list(tmp_path.iterdir())


def test_words_are_chosen_again_in_every_nth_epoch_alone(tiny_clip):
    choices = WordChoices(tiny_clip, "a photo of {}.", [["boat", "ship", "canoe"], ["train"]])
    boat = torch.tensor([0])
    choices.measure(["x"], boat, choices.text[0, 1:2])
    args = SimpleNamespace(reselect_every=2)
    for epoch, seen, expected in ((0, 2, 2), (1, 1, 2), (2, 1, 1), (3, 2, 1)):
        regions = Regions(["x"], boat, None, None, choices.text[0, seen:seen + 1], None)
        text = train_prompt.class_features(args, choices, None, None, tiny_clip, regions, epoch)
        assert torch.equal(text[0], choices.text[0, expected]), epoch
    args.reselect_every = 0
    regions = regions._replace(foreground=choices.text[0, 0:1])
    text = train_prompt.class_features(args, choices, None, None, tiny_clip, regions, 0)
    assert torch.equal(text[0], choices.text[0, 1])


def test_a_reworded_source_is_no_other_setting(tmp_path):
    args = prompt("--method", "clims")
    Run(tmp_path, vars(args))
    stored = json.loads((tmp_path / "args.json").read_text())
    assert stored["set_by"] == args.set_by and stored["w_bg"] == 24
    Run(tmp_path, {**vars(args), "set_by": {}}, resume=True)


def test_default_folders_chain_and_data_root_is_asked_for():
    args = parse(train_cam.get_parser(), ["--dataset", "toy"], "train_cam")
    assert args.out == Path("runs/toy/train_cam") and args.data_root == Path("runs/toy/data")
    with pytest.raises(InputError, match="--data-root: give the folder of the voc12 data"):
        parse(train_cam.get_parser(), [], "train_cam")


def test_the_training_record_is_what_the_flags_say():
    args = prompt("--method", "semples", "--warmup", "7")
    assert training_settings(args, "match", epochs=3) == Training(
        "match", epochs=3, lr=6.4e-5, optimizer="adamw", schedule="cosine", weight_decay=0.03, momentum=0.0, warmup=7)


def default_of(flag, shown):
    """The default that a help text shows for a flag."""
    return shown.split(f"\n  {flag} ")[1].split("(default: ")[1].split(")")[0]


def test_help_shows_the_value_in_force_and_an_example(capsys):
    for argv, epochs, rate in (
            (["--method", "clims"], "15", "0.00025"), (["--method", "semples"], "60", "6.4e-05"),
            (["--dataset", "toy"], "3", "0.002"), (["--method", "clims", "--epochs", "9"], "15", "0.00025")):
        with pytest.raises(SystemExit):
            parse(train_prompt.get_parser(), [*argv, "--help"], "train_prompt")
        shown = capsys.readouterr().out
        assert (default_of("--epochs", shown), default_of("--lr", shown)) == (epochs, rate)
    for script in SCRIPTS:
        with pytest.raises(SystemExit):
            importlib.import_module(script).main(["--help"])
        assert f"example:\n  python {script}.py " in capsys.readouterr().out


def test_dry_run_prints_json_and_stops(tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        train_prompt.main(["--dataset", "toy", "--lr", "0.5", "--out", str(out), "--dry-run"])
    told = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0 and not out.exists()
    assert told["settings"]["lr"] == 0.5 and told["set_by"]["lr"] == "the command line"
    assert told["settings"]["w_area"] == 1.0 and told["defaults"]["w_area"] == 0.0
    assert told["set_by"]["w_area"].startswith("presets.TOY_POLE: toy world, chosen on training images")


def test_a_script_prints_one_line_for_bad_input(tmp_path):
    command = [sys.executable, ROOT / "train_cam.py", "--dataset", "voc12", "--data-root", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "none") in done.stderr
