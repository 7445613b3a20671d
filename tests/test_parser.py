"""The parser: short help and the whole of it, one line for what is wrong, the nearest valid value."""
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from clipwsss.errors import InputError, nearest
from clipwsss.flags import ScriptParser

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["train_cam", "train_prompt", "make_pseudo", "train_seg", "eval"]


def shown(script, flag, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(["--dataset", "toy", flag])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_short_and_help_all_is_complete(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    short, whole = shown(script, "--help", capsys), shown(script, "--help-all", capsys)
    assert len(short.splitlines()) < 60 and "exit status: 0 done" in short and "default: None" not in whole
    flags = [action.option_strings[0] for action in importlib.import_module(script).get_parser()._actions]
    assert [flag for flag in flags if f"\n  {flag}" not in whole] == []
    assert {"--dataset", "--data-root", "--out", "--help-all"} <= {flag for flag in flags if f"\n  {flag}" in short}
    essential = importlib.import_module(script).get_parser().formatter_class.keywords["shown"]
    assert set(essential[-3:]) <= {action.dest for action in importlib.import_module(script).get_parser()._actions}


@pytest.mark.parametrize("argv, said", [
    (["--method", "POEL"], "--method: 'POEL' is none of clims, pole; did you mean pole?"),
    (["--method", "xyz"], "--method: 'xyz' is none of clims, pole"),
    (["--metod", "pole"], "--metod: no such flag; did you mean --method?"),
    (["--lr", "fast"], "--lr: invalid float value: 'fast'"),
    (["--lr"], "--lr: expected one argument")])
def test_what_is_wrong_takes_one_line(argv, said):
    parser = ScriptParser("what", "python x.py", ["method"])
    parser.add_argument("--method", choices=("clims", "pole"))
    parser.add_argument("--lr", type=float)
    with pytest.raises(InputError) as stop:
        parser.parse_args(argv)
    assert str(stop.value).rpartition(" (")[0] == said


def test_nearest_is_told_without_regard_to_case():
    assert nearest("VIT-B/32", ["RN50", "ViT-B/32"]) == "; did you mean ViT-B/32?"
    assert nearest("x", ["RN50"]) == nearest("x", []) == ""


def test_quiet_prints_nothing_but_errors(tmp_path):
    def run(*flags):
        command = [sys.executable, ROOT / "train_cam.py", "--dataset", "toy", "--runs", tmp_path, "--quiet", *flags]
        return subprocess.run(command, capture_output=True, text=True)
    done = run("--dry-run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run("--split", "tst")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ")
