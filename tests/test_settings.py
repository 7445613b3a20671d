"""The table of published settings against what the scripts resolve for each method and data set."""
import importlib
import re
from pathlib import Path

from clipwsss import presets
from clipwsss.presets import train_cam
from clipwsss.options import parse
from clipwsss.prompt_options import METHODS

TABLE = Path(__file__).resolve().parents[1] / "clipwsss" / "guidance" / "SETTINGS.md"


def read_sections():
    """[(command line, {setting: ours})] of the sections of the table that have a command line."""
    sections = []
    for section in TABLE.read_text().split("\n## ")[1:]:
        command = re.search(r"^`(\w+\.py .*)`$", section, re.M)
        if command is None:
            continue
        ours = {}
        for line in section.splitlines():
            if line.startswith("| ") and not line.startswith("| setting"):
                cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
                assert cells[0] not in ours, f"{command[1]}: two rows of {cells[0]}"
                ours[cells[0]] = cells[3]
        sections.append((command[1], ours))
    return sections


def shown(value):
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def test_ours_is_what_the_scripts_resolve():
    parsers = {}
    for command, ours in read_sections():
        script, *flags = command.split()
        stage = script.removesuffix(".py")
        if stage not in parsers:
            parsers[stage] = importlib.import_module(stage).get_parser
        args = vars(parse(parsers[stage](), [*flags, "--data-root", "."], stage))
        assert ours, f"{command}: no settings are listed"
        resolved = {name: shown(args[name]) for name in ours}
        assert resolved == ours, f"{command}: the table and the script differ"


def test_every_method_and_paper_data_set_is_there():
    sections = read_sections()
    lines = [command for command, _ in sections]
    missing = [method for method in METHODS if not any(f"--method {method}" in line for line in lines)]
    assert not missing, f"the table has no section of {missing}"
    on_coco = {line.split()[0] for line in lines if "coco14" in line}
    assert on_coco == {"train_cam.py", "train_prompt.py", "make_pseudo.py", "train_seg.py"}
    assert sum(len(ours) for _, ours in sections) > 150


def test_the_sections_of_the_published_methods_list_every_value_of_their_blocks():
    """Further sections list what differs from these."""
    sections = dict(read_sections())
    prompts = presets.TRAIN_PROMPT["voc12"]
    blocks = {"train_cam.py --dataset voc12": train_cam.CLIMS_CAM,
              "train_cam.py --dataset voc12 --generator weaktr": train_cam.WEAKTR_CAM,
              **{f"train_prompt.py --dataset voc12 --method {method}": prompts["resnet", method]
                 for method in ("clims", "pole", "semples")}}
    for command, block in blocks.items():
        assert block.keys() - {"block", "source"} <= sections[command].keys(), command
    on_weaktr = prompts["weaktr", "semples"]
    own = {name for name, value in on_weaktr.items() if prompts["resnet", "semples"].get(name) != value}
    listed = sections["train_prompt.py --dataset voc12 --method semples --generator weaktr"].keys()
    assert own - {"block", "source"} <= listed
