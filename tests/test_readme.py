"""What the README says exists: scripts, modules and flags of its command lines, links, paths; its example runs."""
import contextlib
import importlib.util
import io
import re
import shlex
import sys

import numpy as np
import pytest
from PIL import Image

from clipwsss.cams.files import write_cam
from clipwsss.toy.world import draw_world
from conftest import ROOT

PAGES = ("README.md", "clipwsss/toy/RESULTS.md", "tests/benchmarks/RESULTS.md")
TEXT = (ROOT / "README.md").read_text()


def command_lines(text):
    """Every command line of a script or module: from `python`, or a script's name, to the end of line or code."""
    lines = re.findall(r"^(?:python3?|\S*/python) [^\n`]+|(?<=`)(?:python|[a-z_]+\.py) [^`]+(?=`)", text, re.MULTILINE)
    return [" ".join(line.partition(" # ")[0].split()) for line in lines if " -m venv" not in line]


def help_of(module):
    """The --help of a script or of a module that runs by itself."""
    if (ROOT / module.replace(".", "/")).is_dir():
        module += ".__main__"
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
        importlib.import_module(module).main(["--help" if "." in module else "--help-all"])
    return shown.getvalue()


def wrong_with(line):
    """What does not exist of a command line: its script or module, or flags; an empty list where all is well."""
    words = shlex.split(line)
    words = words[1:] if "python" in words[0] else words
    target, flags = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    module = target if words[0] == "-m" else target.removesuffix(".py").replace("/", ".")
    try:
        present = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        present = False
    if not present:
        return [target]
    if module.startswith("tests."):
        return []
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_of(module)))
    return [flag for flag in flags if re.match(r"--?[a-z]", flag) and flag not in known]


LINES = sorted({line for page in PAGES for line in command_lines((ROOT / page).read_text())})


def test_command_lines_are_read_from_the_pages():
    for line in ("python train_cam.py --dataset folder --data-root mydata", "make_pseudo.py --segments DIR",
                 "python -m clipwsss.toy --train-clip", "python -m clipwsss.ablate --table combined --co-occurrence 0.9"):
        assert line in LINES
    assert len(LINES) >= 20


@pytest.mark.parametrize("line", LINES)
def test_command_lines_name_what_exists(line):
    assert wrong_with(line) == []


@pytest.mark.parametrize("line, wrong", [
    ("python train_cams.py --dataset toy", ["train_cams.py"]), ("python -m clipwsss.propose --n 4", ["clipwsss.propose"]),
    ("python train_cam.py --dataset toy --epoch 4 --lrs 1", ["--epoch", "--lrs"]), ("eval.py --cam DIR", ["--cam"]),
    ("python -m clipwsss.toy --paint DIR", ["--paint"])])
def test_what_does_not_exist_is_noticed(line, wrong):
    assert wrong_with(line) == wrong


def test_the_two_commands_are_those_that_ci_runs():
    commands = re.findall(r"^python3 -m venv.*", TEXT, re.MULTILINE)
    assert [command.rpartition("/")[2] for command in commands] == ["python -m clipwsss.demo", "python -m pytest"]
    for name in re.findall(r"-r (\S+)", " ".join(commands)):
        assert (ROOT / name).is_file()


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) <= 220


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    assert links or page.startswith("tests")
    for link in links:
        if not link.startswith("http"):
            assert ((ROOT / page).parent / link).is_file(), link


def test_the_contact_sheet_is_small():
    picture = ROOT / ".figures" / "demo.jpg"
    assert picture.stat().st_size <= 120_000 and min(Image.open(picture).size) >= 300


@pytest.mark.parametrize("page", PAGES)
def test_paths_of_the_package_exist(page):
    paths = re.findall(r"`(clipwsss/[\w./]+|tests/[\w./]+)`", (ROOT / page).read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## )", TEXT, re.MULTILINE | re.DOTALL)[1]


def test_the_map_names_modules_that_exist_and_every_room():
    modules = re.findall(r"`((?!clipwsss)\w+/\w*)`", section("Module map"))
    for module in modules:
        place = ROOT / "clipwsss" / module
        assert place.is_dir() or place.with_suffix(".py").is_file(), module
    rooms = {path.parent.name for path in (ROOT / "clipwsss").glob("*/__init__.py")}
    assert rooms - {module.partition("/")[0] for module in modules} <= {"toy"}
    assert re.findall(r"^\d+\. ", section("Module map"), re.MULTILINE) == [f"{number}. " for number in range(1, 11)]


def test_the_modules_to_copy_need_what_the_table_says():
    rows = re.findall(r"^\| `clipwsss/(\S+)` \|.*\| (.*) \|$", section("Modules to copy"), re.MULTILINE)
    assert len(rows) == 7
    for path, needs in rows:
        place = ROOT / "clipwsss" / path
        source = "".join(file.read_text() for file in (place.glob("*.py") if place.is_dir() else [place]))
        packages = set(re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE)) - set(sys.stdlib_module_names)
        assert packages == {need for need in needs.split(", ") if need[0] != "`"}, path
        assert all((ROOT / "clipwsss" / need).is_file() for need in re.findall("`(.*?)`", needs))


def test_the_example_runs(tmp_path, monkeypatch):
    draw_world(tmp_path / "runs" / "demo" / "toy" / "data", 0, 1, 1)
    maps = np.zeros((2, 24, 24), np.float32)
    maps[0, 6:18, 6:18] = maps[1, :4, :4] = 0.9
    write_cam(tmp_path / "runs" / "demo" / "toy" / "train_prompt" / "cams", "train_00000", np.array([0, 3]), maps)
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", section("From Python"), re.DOTALL)[1]
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["labels"].shape == (96, 96) and set(np.unique(names["labels"])) <= {0, 1, 2}
    assert Image.open("train_00000_crf.png").size == (96, 96)
    assert len(example.partition("\n\n")[2].strip().splitlines()) == 5
