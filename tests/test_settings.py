"""The table of published settings against what the scripts resolve for each method and data set."""
import importlib
import re
from pathlib import Path

import pytest

from clipwsss.options import parse

TABLE = Path(__file__).resolve().parents[1] / "clipwsss" / "guidance" / "SETTINGS.md"


def commands():
    """(command line, [(setting, ours)]) of every section of the table."""
    for section in TABLE.read_text().split("\n## ")[1:]:
        command = re.search(r"^`(\w+\.py .*)`$", section, re.M)
        rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in section.splitlines()
                if line.startswith("| ") and not line.startswith("| setting")]
        if command:
            yield command[1], [(row[0], row[3]) for row in rows]


def shown(value):
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@pytest.mark.parametrize("command, rows", list(commands()), ids=lambda part: part if isinstance(part, str) else "")
def test_ours_is_what_the_script_resolves(command, rows):
    script, *flags = command.split()
    stage = script.removesuffix(".py")
    args = vars(parse(importlib.import_module(stage).get_parser(), [*flags, "--data-root", "."], stage))
    assert rows and {name: shown(args[name]) for name, _ in rows} == dict(rows)


def test_every_method_and_paper_data_set_is_there():
    lines = [command for command, _ in commands()]
    assert all(any(f"--method {method}" in line for line in lines)
               for method in ("clims", "pole", "coop", "target", "defo", "semples", "both"))
    assert {line.split()[0] for line in lines if "coco14" in line} == {"train_cam.py", "train_prompt.py", "make_pseudo.py", "train_seg.py"}
    assert sum(len(rows) for _, rows in commands()) > 150
