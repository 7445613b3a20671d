"""Typed flags: what they take, and the one line that says what would be right."""
import re
from pathlib import Path

import pytest

from clipwsss.errors import InputError
from clipwsss.flags import Ascending, Parser, file_to_write, real, whole


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


@pytest.mark.parametrize("line, told", [
    ("--epochs -1", "--epochs: '-1' is not a whole number from 0 up"), ("--epochs 1.5", "'1.5' is not a whole number"),
    ("--epochs many", "'many' is not a whole number from 0 up"), ("--crop 15", "from 16 to 4096"),
    ("--crop 4097", "from 16 to 4096"), ("--lr nan", "'nan' is not a number from 0 to 100"),
    ("--lr -0.5", "from 0 to 100"), ("--weight inf", "'inf' is not a number from -1 up"),
    ("--span 3 2", "--span: 3 2 is no range"), ("--span 0 2", "--span: 0 2 is no range"),
    ("--json a.txt", "--json: 'a.txt' is not the name of a file in .json or .js"), ("--jsom a", "--jsom: no such flag; did you mean --json?"),
    ("--epochs", "expected one argument")])
def test_what_is_out_of_range_is_one_line(parser, line, told):
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        parser.parse_args(line.split())
    assert "\n" not in str(caught.value) and str(caught.value).endswith("(x.py --help lists all flags)")


def test_a_folder_is_no_file_to_write(parser, tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(InputError, match="not the name of a file in .json"):
        parser.parse_args(["--json", str(tmp_path / "a.json")])
