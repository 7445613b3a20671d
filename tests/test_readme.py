"""The Markdown pages name only what exists: commands, flags, links, paths, weights. Their examples run."""
import contextlib
import functools
import importlib.util
import io
import json
import re
import shlex
import sys

import numpy as np
import pytest
from PIL import Image

from clipwsss import ablate
from clipwsss.ablation_rows import later_stages, read_rows
from clipwsss.clip.checkpoint import CLIP_RELEASE
from clipwsss.datasets import build_dataset
from clipwsss.networks.resnet import RESNET_WEIGHTS
from clipwsss.networks.vit import VIT_WEIGHTS
from clipwsss.segment.segmenter import build_segmenter, save_segmenter
from clipwsss.toy.world import draw_world
from conftest import ROOT

PAGES = ("README.md", "clipwsss/PYTHON.md", "clipwsss/OWN_DATA.md", "clipwsss/WEIGHTS.md", "clipwsss/ABLATIONS.md",
         "clipwsss/REPRODUCE.md", "clipwsss/datasets/FORMATS.md", "clipwsss/guidance/TEMPLATES.md", "clipwsss/toy/RESULTS.md",
         "tests/HOSTILE.md", "tests/benchmarks/RESULTS.md")
SECTIONS = ["Status", "Two commands", "Your own data", "VOC 2012 and COCO 2014", "Methods",
            "What each script writes", "Modules to copy", "Sources and licence"]
README = (ROOT / "README.md").read_text()
COMMAND = re.compile(r"^(?:python3?|\S*/python) [^\n`]+"  # a line of a code block
                     r"|(?<=`)(?:python|torchrun|[a-z_]+\.py) [^`]+(?=`)",  # or code within a sentence
                     re.MULTILINE)


def command_lines(text):
    """Every command line of a script or module on a page, with its continuation lines, without comments."""
    found = COMMAND.findall(text.replace("\\\n", " "))
    lines = [" ".join(line.partition(" # ")[0].split()) for line in found]
    return [line for line in lines if "-m venv" not in line]


LINES = sorted({line for page in PAGES for line in command_lines((ROOT / page).read_text())})


def parts(line):
    """(module, arguments) of a command line: `python -m a.b --c` and `a/b.py --c` give ("a.b", ["--c"])."""
    words = shlex.split(line)
    if words[0] == "torchrun":
        words = words[2:]
    if "python" in words[0]:
        words = words[1:]
    if words[0] == "-m":
        return words[1], words[2:]
    return words[0].removesuffix(".py").replace("/", "."), words[1:]


@functools.cache
def known_flags(module):
    """The flags that the help text of a script or module shows."""
    if (ROOT / module.replace(".", "/")).is_dir():
        module += ".__main__"
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
        importlib.import_module(module).main(["--help" if "." in module else "--help-all"])
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", shown.getvalue()))


def wrong_with(line):
    """What a command line names that does not exist: its script or module, or flags."""
    module, arguments = parts(line)
    try:
        present = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        present = False
    if not present:
        return [module]
    if module.startswith("tests."):
        return []
    flags = [word.partition("=")[0] for word in arguments if re.match(r"--?[a-z]", word)]
    return [flag for flag in flags if flag not in known_flags(module)]


@pytest.mark.smoke
def test_the_readme_is_short_and_in_order():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []
    assert re.findall(r"^## (.*)", README, re.MULTILINE) == SECTIONS
    introduction = README.partition("\n## ")[0]
    assert introduction.startswith("# clipwsss\n") and ".figures/demo.jpg" in introduction
    assert "**No VOC or COCO run has been made with this code.**" in section("Status")


@pytest.mark.smoke
def test_links_and_paths_exist():
    for page in PAGES:
        text = (ROOT / page).read_text()
        links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "#"))]
        for link in links:
            assert ((ROOT / page).parent / link.partition("#")[0]).is_file(), f"{page}: {link}"
        for path in re.findall(r"`((?:clipwsss|tests)/[\w./]+)`", text):
            assert (ROOT / path).exists(), f"{page}: {path}"
        prose = [line for line in text.splitlines() if not line.startswith(("|", "!", "python"))]
        assert [line for line in prose if len(line) > 120] == [], page


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(([\w/]+\.md)\)", README))
    assert linked >= set(PAGES) - {"README.md"}


def test_command_lines_are_read_from_the_pages():
    for line in ("python train_cam.py --dataset folder --data-root mydata --preset quick",
                 "make_pseudo.py --segments DIR", "python -m clipwsss.toy --train-clip",
                 "python -m clipwsss.datasets check mydata",
                 "python train_seg.py --dataset voc12 --data-root VOCdevkit/VOC2012 --network mask2former "
                 "--masks runs/voc12/sam/masks"):
        assert line in LINES
    assert len(LINES) >= 20


def test_command_lines_name_what_exists():
    assert {line: wrong for line in LINES if (wrong := wrong_with(line))} == {}


def test_what_does_not_exist_is_noticed():
    for line, wrong in (("python train_cams.py --dataset toy", ["train_cams"]),
                        ("python -m clipwsss.propose --n 4", ["clipwsss.propose"]),
                        ("python train_cam.py --dataset toy --epoch 4 --lrs 1", ["--epoch", "--lrs"]),
                        ("eval.py --cam DIR", ["--cam"]),
                        ("python -m clipwsss.toy --paint DIR", ["--paint"])):
        assert wrong_with(line) == wrong


def test_the_scripts_command_lines_parse(capsys):
    """The values of flags too: --dry-run prints the settings and stops before it looks at any file."""
    scripts = [line for line in LINES if re.match(r"python \w+\.py", line)]
    assert len(scripts) >= 15
    for line in scripts:
        module, arguments = parts(line)
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(module).main([*arguments, "--dry-run"])
        assert stopped.value.code == 0, line
        assert json.loads(capsys.readouterr().out)["settings"]["dry_run"], line


def test_the_ablation_commands_name_tables_rows_and_files_that_fit():
    """The values too: rows that --only names exist, and a row that needs segments is given them."""
    tables = json.loads((ROOT / "clipwsss/assets/tables.json").read_text())
    pages = [(ROOT / "clipwsss" / name).read_text() for name in ("ABLATIONS.md", "REPRODUCE.md")]
    commands = [parts(line) for page in pages for line in command_lines(page)]
    lines = [arguments for module, arguments in commands if module == "clipwsss.ablate" and "--table" in arguments]
    assert len(lines) >= 4
    for line in lines:
        args = ablate.get_parser().parse_args([word for word in line if word not in ("&", "wait")])
        rows = read_rows(tables[args.table], args.dataset)
        assert set(args.only or ()) <= set(rows), line
        for name in args.only or rows:
            if args.through:
                later_stages(rows[name], args.through, args.dataset, (), args.segments, args.segmenter_weights)


def test_the_first_run_has_every_stage_of_both_methods():
    lines = command_lines((ROOT / "clipwsss/REPRODUCE.md").read_text())
    for words in (["train_cam.py", "--init weights/res50_cam.pth"], ["train_prompt.py", "--method pole"],
                  ["train_prompt.py", "--method semples"], ["clipwsss.refine.segments"],
                  ["make_pseudo.py", "--segments segments"], ["train_seg.py", "--network mask2former"],
                  ["train_seg.py", "coco14"], ["clipwsss.ablate", "--table main", "voc12"]):
        assert any(all(word in line for word in words) for line in lines), words
    sha256 = re.findall(r"`([0-9a-f]{64})`", section("Files", "clipwsss/REPRODUCE.md"))
    assert CLIP_RELEASE["ViT-B/32"][1] in sha256 and len(set(sha256)) == 5


def test_the_two_commands_are_those_that_ci_runs():
    commands = re.findall(r"^python3 -m venv.*", README, re.MULTILINE)
    ends = [command.rpartition("/")[2] for command in commands]
    assert ends == ["python -m clipwsss.demo", "python -m pytest"]
    for name in re.findall(r"-r (\S+)", " ".join(commands)):
        assert (ROOT / name).is_file()
    assert "-r ../requirements.txt\n" in (ROOT / "tests/requirements.txt").read_text()


def test_the_contact_sheet_is_small():
    picture = ROOT / ".figures" / "demo.jpg"
    assert picture.stat().st_size <= 120_000 and min(Image.open(picture).size) >= 300


def section(title, page="README.md"):
    """The text of a page below one of its headings."""
    return (ROOT / page).read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_methods_are_those_of_the_script():
    import train_prompt
    (action,) = [action for action in train_prompt.get_parser()._actions if action.dest == "method"]
    rows = re.findall(r"^\| (`\w.*?) \|", section("Methods"), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(action.choices)


def test_the_ablations_are_those_of_the_tables():
    tables = json.loads((ROOT / "clipwsss/assets/tables.json").read_text())
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "clipwsss/ABLATIONS.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(tables)


def test_the_module_map_names_every_folder_and_modules_that_exist():
    text = section("One image through the modules", "clipwsss/PYTHON.md")
    modules = re.findall(r"`((?!clipwsss)\w+/\w*)`", text)
    for module in modules:
        place = ROOT / "clipwsss" / module
        assert place.is_dir() or place.with_suffix(".py").is_file(), module
    folders = {path.parent.name for path in (ROOT / "clipwsss").glob("*/__init__.py")}
    assert folders - {module.partition("/")[0] for module in modules} <= {"toy"}


def test_the_modules_to_copy_need_what_the_table_says():
    rows = re.findall(r"^\| `clipwsss/(\S+)` \|.*\| (.*) \|$", section("Modules to copy", "clipwsss/PYTHON.md"), re.MULTILINE)
    assert len(rows) == 8
    for path, needs in rows:
        place = ROOT / "clipwsss" / path
        files = place.glob("*.py") if place.is_dir() else [place]
        source = "".join(file.read_text() for file in files)
        imported = set(re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE))
        packages = imported - set(sys.stdlib_module_names)
        assert packages == {need for need in needs.split(", ") if need[0] != "`"}, path
        assert all((ROOT / "clipwsss" / need).is_file() for need in re.findall("`(.*?)`", needs))


def test_the_weights_table_is_what_is_downloaded():
    text = (ROOT / "clipwsss/WEIGHTS.md").read_text()
    rows = dict(re.findall(r"^\| (`.*?\.(?:pt|pth)`) \| (`http.*) \|$", text, re.MULTILINE))
    names = {name: rest for files, rest in rows.items() for name in re.findall("`(.*?)`", files)}
    for file, name in (("ViT-B-32.pt", "ViT-B/32"), ("ViT-B-16.pt", "ViT-B/16")):
        address, sha256 = re.findall("`(.*?)`", names.pop(file))
        assert (address.replace("SHA-256", sha256), sha256) == CLIP_RELEASE[name]
    urls = [url for url, _ in (*RESNET_WEIGHTS.values(), *VIT_WEIGHTS.values())]
    assert sorted(re.search("`(http.*?)`", rest)[1] + name for name, rest in names.items()) == sorted(urls)
    for name in CLIP_RELEASE:
        assert name in text, name


def examples(title):
    """The Python blocks of a section of PYTHON.md as one program, and the stages that it names in bold."""
    text = section(title, "clipwsss/PYTHON.md")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    stages = re.findall(r"^\*\*(\w+)\*\*:", text, re.MULTILINE)
    return "\n".join(blocks), stages


def test_the_example_of_a_trained_segmenter_runs(tmp_path, monkeypatch):
    draw_world(tmp_path / "runs/demo/toy/data", 0, 1, 2)
    data = build_dataset("toy", tmp_path / "runs/demo/toy/data", "val")
    design = {"network": "deeplabv2", "backbone": "resnet_tiny", "output_stride": 4, "rates": (1, 2)}
    network, design = build_segmenter(design, len(data.classes) + 1)
    path = tmp_path / "runs/demo/toy/train_seg/segmenter.pt"
    path.parent.mkdir(parents=True)
    save_segmenter(network, design, data.classes, data.palette, path)
    monkeypatch.chdir(tmp_path)
    code, _ = examples("A trained segmenter")
    names = {}
    exec(compile(code, "PYTHON.md", "exec"), names)
    result = names["result"]
    assert result.labels.shape == (96, 96) and result.labels.max() <= 6 and result.probabilities.shape == (7, 96, 96)


def test_the_examples_of_the_stages_run(tmp_path, monkeypatch, capsys):
    draw_world(tmp_path / "world", 0, 2, 1)
    monkeypatch.chdir(tmp_path)
    code, stages = examples("Each stage in a few lines")
    assert stages == ["cams", "guidance", "refine", "segment", "report"]
    names = {}
    exec(compile(code, "PYTHON.md", "exec"), names)
    classes = set(names["classes"].tolist())
    assert names["cams"].shape == (1, 6, 96, 96) and 0 <= names["cams"].min() and names["cams"].max() <= 1
    assert names["loss"].isfinite() and set(np.unique(names["mask"])) <= {0} | {k + 1 for k in classes}
    assert names["labels"].shape == names["mask"].shape == Image.open("mask.png").size == (96, 96)
    assert re.search(r"mIoU \d+\.\d %\n$", capsys.readouterr().out)
