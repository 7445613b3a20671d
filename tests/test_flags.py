"""Flags and their parser: what they take, short help and all of it, the one line that says what would be right."""
import importlib
import re
from pathlib import Path

import pytest

from clipwsss.errors import InputError, nearest
from clipwsss.flags import Ascending, Parser, file_to_write, real, whole

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["train_cam", "train_prompt", "make_pseudo", "train_seg", "eval"]


@pytest.fixture
def parser():
    made = Parser(prog="x.py")
    add = made.add_argument
    add("--epochs", type=whole(0))
    add("--crop", type=whole(16, 4096))
    add("--lr", type=real(0, 100))
    add("--weight", type=real(-1))
    add("--span", type=whole(0, 640), nargs=2, action=Ascending)
    add("--json", type=file_to_write(".json", ".js"))
    return made


def test_values_in_range_keep_their_kind(parser):
    args = parser.parse_args("--epochs 0 --crop 16 --lr 1e-4 --weight -1 --span 320 320 --json a.json".split())
    assert (args.epochs, args.crop, args.lr, args.weight, args.span) == (0, 16, 1e-4, -1.0, [320, 320])
    assert type(args.epochs) is int and type(args.weight) is float and args.json == Path("a.json")
    assert parser.parse_args(["--span", "0", "0"]).span == [0, 0]


def test_what_is_out_of_range_is_one_line(parser):
    for line, told in (
            ("--epochs -1", "--epochs: '-1' is not a whole number of at least 0"),
            ("--epochs 1.5", "'1.5' is not a whole number"), ("--epochs many", "'many' is not a whole number"),
            ("--crop 15", "from 16 to 4096"), ("--crop 4097", "from 16 to 4096"),
            ("--lr nan", "'nan' is not a number from 0 to 100"), ("--lr -0.5", "from 0 to 100"),
            ("--weight inf", "'inf' is not a number of at least -1"),
            ("--span 3 2", "--span: 3 2 is not a range"), ("--span 0 2", "--span: 0 2 is not a range"),
            ("--json a.txt", "--json: 'a.txt' is not a file name that ends in .json or .js"),
            ("--jsom a", "--jsom: no such flag; did you mean --json?"), ("--epo 3", "--epo: no such flag"),
            ("--epochs", "expected one argument")):
        with pytest.raises(InputError, match=re.escape(told)) as caught:
            parser.parse_args(line.split())
        assert "\n" not in str(caught.value) and str(caught.value).endswith("(x.py --help lists the flags)"), line


def test_a_folder_is_no_file_to_write(parser, tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(InputError, match="not a file name that ends in .json"):
        parser.parse_args(["--json", str(tmp_path / "a.json")])


def shown(script, flag, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(["--dataset", "toy", flag])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_short_and_help_all_is_complete(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    short, whole = shown(script, "--help", capsys), shown(script, "--help-all", capsys)
    assert len(short.splitlines()) < 75 and "exit status: 0 success" in short and "default: None" not in whole
    flags = [action.option_strings[0] for action in importlib.import_module(script).get_parser()._actions]
    assert [flag for flag in flags if f"\n  {flag}" not in whole] == []
    assert {"--dataset", "--data-root", "--out", "--help-all"} <= {flag for flag in flags if f"\n  {flag}" in short}
    essential = importlib.import_module(script).get_parser()._actions[0].const  # of --help
    assert set(essential[-3:]) <= {action.dest for action in importlib.import_module(script).get_parser()._actions}


def test_what_is_wrong_takes_one_line():
    parser = Parser(prog="x.py")
    parser.add_argument("--method", choices=("clims", "pole"))
    parser.add_argument("--lr", type=float)
    for argv, said in (
            (["--method", "POEL"], "--method: 'POEL' is not one of clims, pole; did you mean pole?"),
            (["--method", "xyz"], "--method: 'xyz' is not one of clims, pole"),
            (["--metod", "pole"], "--metod: no such flag; did you mean --method?"),
            (["--lr", "fast"], "--lr: invalid float value: 'fast'"),
            (["--lr"], "--lr: expected one argument")):
        with pytest.raises(InputError) as stop:
            parser.parse_args(argv)
        assert str(stop.value).rpartition(" (")[0] == said


def test_nearest_is_told_without_regard_to_case():
    assert nearest("VIT-B/32", ["RN50", "ViT-B/32"]) == "; did you mean ViT-B/32?"
    assert nearest("x", ["RN50"]) == nearest("x", []) == ""
