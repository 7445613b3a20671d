"""What the pages say exists: scripts, modules and flags of command lines, links, paths, weights; the Python page runs."""
import contextlib
import importlib.util
import io
import json
import re
import shlex
import sys

import numpy as np
import pytest
from PIL import Image
from torchvision.models import get_model_weights

from clipwsss.clip.checkpoint import PUBLISHED, SOURCE
from clipwsss.datasets import build_dataset
from clipwsss.networks.deeplab import Design
from clipwsss.networks.resnet import RESNETS
from clipwsss.networks.vit import WEIGHTS
from clipwsss.segment.segmenter import build_segmenter
from clipwsss.toy.world import draw_world
from conftest import ROOT

PAGES = ("README.md", "clipwsss/PYTHON.md", "clipwsss/toy/RESULTS.md", "tests/benchmarks/RESULTS.md")
TEXT, PYTHON = ((ROOT / page).read_text() for page in PAGES[:2])


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
    for line in ("python train_cam.py --dataset folder --data-root mydata --preset quick", "make_pseudo.py --segments DIR",
                 "python -m clipwsss.toy --train-clip", "train_prompt.py --synonyms synonyms.json"):
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
    assert links or page != "README.md"
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
    assert len(rows) == 8
    for path, needs in rows:
        place = ROOT / "clipwsss" / path
        source = "".join(file.read_text() for file in (place.glob("*.py") if place.is_dir() else [place]))
        packages = set(re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE)) - set(sys.stdlib_module_names)
        assert packages == {need for need in needs.split(", ") if need[0] != "`"}, path
        assert all((ROOT / "clipwsss" / need).is_file() for need in re.findall("`(.*?)`", needs))


@pytest.mark.parametrize("line", [line for line in LINES if re.match(r"python \w+\.py", line)])
def test_the_scripts_command_lines_parse(line, capsys):
    """Their values too: --dry-run prints the settings in force and stops before it looks at any file."""
    words = shlex.split(line.removeprefix("python "))
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(words[0].removesuffix(".py")).main([*words[1:], "--dry-run"])
    assert stopped.value.code == 0 and json.loads(capsys.readouterr().out)["settings"]["dry_run"]


def test_the_weights_table_is_what_is_downloaded():
    rows = dict(re.findall(r"^\| (`.*?\.(?:pt|pth)`) \| (.*) \|$", TEXT, re.MULTILINE))
    names = {name: rest for files, rest in rows.items() for name in re.findall("`(.*?)`", files)}
    folder, sha256 = re.findall("`(.*?)`", names.pop("ViT-B-32.pt"))
    assert folder.replace("SHA-256", sha256) == SOURCE + PUBLISHED["ViT-B/32"]
    urls = [get_model_weights(name).IMAGENET1K_V1.url for name in RESNETS if name != "resnet_tiny"] + list(WEIGHTS.values())
    assert sorted(re.search("`(http.*?)`", rest)[1] + name for name, rest in names.items()) == sorted(urls)


def test_the_readmes_five_lines_run(tmp_path, monkeypatch):
    draw_world(tmp_path / "runs/demo/toy/data", 0, 1, 2)
    data = build_dataset("toy", tmp_path / "runs/demo/toy/data", "val")
    design = Design("deeplabv2", "resnet_tiny", 4, (1, 2), multi_scale=False)
    segmenter = build_segmenter(design._asdict(), data.classes, data.palette, "none")
    segmenter.save(tmp_path / "runs/demo/toy/train_seg/segmenter.pt")
    monkeypatch.chdir(tmp_path)
    code, names = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1], {}
    assert len(code.splitlines()) == 5
    exec(compile(code, "README.md", "exec"), names)
    assert names["labels"].shape == (96, 96) and 0 <= names["labels"].min() <= names["labels"].max() <= 6


def test_the_python_page_runs(tmp_path, monkeypatch, capsys):
    """All its blocks in their order, as one program; each stage takes about five lines beside its imports."""
    draw_world(tmp_path / "world", 0, 2, 1)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"\*\*(\w+)\*\*:[^`]*?.*?```python\n(.*?)```", PYTHON, re.DOTALL)
    assert [stage for stage, _ in blocks] == ["cams", "guidance", "refine", "segment", "report"]
    assert all(len(code.partition("\n\n")[2].strip().splitlines()) <= 5 for _, code in blocks)
    names = {}
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", PYTHON, re.DOTALL)), "PYTHON.md", "exec"), names)
    classes = set(names["classes"].tolist())
    assert names["cams"].shape == (1, 6, 96, 96) and 0 <= names["cams"].min() and names["cams"].max() <= 1
    assert names["loss"].isfinite() and set(np.unique(names["mask"])) <= {0} | {k + 1 for k in classes}
    assert names["labels"].shape == names["mask"].shape == Image.open("mask.png").size == (96, 96)
    assert re.search(r"\nmIoU \d+\.\d %\n$", capsys.readouterr().out)
