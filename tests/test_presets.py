"""The preset blocks: every key is a real flag, values are taken as they stand, no mechanism beside the blocks."""
import ast
import importlib
from pathlib import Path

import pytest

from clipwsss import presets
from clipwsss.errors import InputError
from clipwsss.options import parse

STAGES = ("train_cam", "train_prompt", "make_pseudo", "train_seg")
MODULES = [importlib.import_module(f"clipwsss.presets.{stage}") for stage in STAGES]
BLOCKS = {name: value for module in MODULES for name, value in vars(module).items()
          if isinstance(value, dict) and "block" in value}


def parsed(stage, *flags):
    """The settings of a command line."""
    parser = importlib.import_module(stage).get_parser()
    return vars(parse(parser, ["--data-root", ".", *flags], stage))


def rows():
    """(stage, data, block) of every row of the tables."""
    for (data, _), block in presets.TRAIN_CAM.items():
        yield "train_cam", data, block
    for data, methods in presets.TRAIN_PROMPT.items():
        for block in methods.values():
            yield "train_prompt", data, block
    for (data, _), walks in presets.MAKE_PSEUDO.items():
        for block in walks.values():
            yield "make_pseudo", data, block
    for table in (presets.TRAIN_SEG, presets.TRAIN_SEG_FROM_IMAGENET):
        for (data, _), block in table.items():
            yield "train_seg", data, block


def as_flags(name, value):
    """A setting as it is written on a command line."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{name.replace('_', '-')}"]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def test_every_block_is_named_sourced_and_used():
    used = [block for _, _, block in rows()]
    for name, block in BLOCKS.items():
        assert block["block"] == name and block["source"]
        assert any(block is item for item in used), f"{name} is in no table"


@pytest.mark.parametrize("stage", STAGES)
def test_every_value_is_one_that_its_flag_takes(stage):
    parser = importlib.import_module(stage).get_parser()
    known = vars(parser.parse_args([]))
    for row_stage, data, block in rows():
        if row_stage != stage:
            continue
        settings = {name: value for name, value in block.items() if name not in ("block", "source")}
        assert settings.keys() <= known.keys(), block["block"]
        words = [word for name, value in settings.items() for word in as_flags(name, value)]
        taken = vars(parser.parse_args(words))
        for name, value in settings.items():
            assert taken[name] == value and type(taken[name]) is type(value), (block["block"], name)
        for of_data_set in presets.DATA_SET_VALUES.get(stage, {}).values():
            assert not settings.keys() & of_data_set.keys() and of_data_set.keys() <= known.keys()


def test_blocks_are_literals_on_one_base_that_has_none():
    """POLE_COCO = POLE | dict(...), where POLE itself is a plain dict(...)."""
    bases = {}
    statements = [node for module in MODULES for node in ast.parse(Path(module.__file__).read_text()).body]
    for node in statements:
        if isinstance(node, ast.Assign) and node.targets[0].id in BLOCKS:
            value = node.value
            name = node.targets[0].id
            bases[name] = None
            if isinstance(value, ast.BinOp):
                assert isinstance(value.op, ast.BitOr) and isinstance(value.left, ast.Name), name
                bases[name] = value.left.id
                value = value.right
            assert isinstance(value, ast.Call) and value.func.id == "dict", name
            for keyword in value.keywords:
                ast.literal_eval(keyword.value)
    assert bases.keys() == BLOCKS.keys()
    for name, base in bases.items():
        assert base is None or bases[base] is None, f"{name} stands on {base}, which stands on {bases[base]}"


def test_the_block_of_a_command():
    for flags, stage, block in (
            (["--method", "pole"], "train_prompt", "POLE"),
            (["--dataset", "folder", "--method", "pole"], "train_prompt", "POLE"),
            (["--dataset", "folder", "--method", "both"], "train_prompt", "BOTH"),
            (["--method", "semples", "--generator", "weaktr"], "train_prompt", "SEMPLES_WEAKTR"),
            (["--dataset", "coco14", "--method", "semples"], "train_prompt", "SEMPLES_COCO"),
            (["--preset", "quick", "--method", "coop"], "train_prompt", "QUICK_COOP"),
            (["--dataset", "toy", "--preset", "quick", "--method", "clims"], "train_prompt", "TOY_CLIMS"),
            ([], "make_pseudo", "IRN_VOC"), (["--refine", "psa", "crf"], "make_pseudo", "PSA"),
            (["--refine", "crf"], "make_pseudo", "IRN_VOC"), (["--dataset", "toy"], "make_pseudo", "TOY_COLOR"),
            (["--dataset", "toy", "--refine", "none"], "make_pseudo", "TOY_NO_WALK"),
            (["--network", "mask2former"], "train_seg", "MASK2FORMER"), ([], "train_cam", "CLIMS_CAM"),
            (["--generator", "clip"], "train_cam", "CLIP_CAM"),
            (["--generator", "clip", "--dataset", "folder"], "train_cam", "CLIP_CAM"),
            (["--generator", "clip", "--dataset", "coco14"], "train_cam", "CLIP_CAM_COCO"),
            (["--generator", "clip", "--dataset", "coco14", "--preset", "quick"], "train_cam", "QUICK_CLIP_CAM"),
            (["--generator", "clip", "--dataset", "toy"], "train_cam", "TOY_CLIP_CAM")):
        settings = parsed(stage, *flags)
        for name in BLOCKS[block].keys() - {"block", "source"} - set(flag.strip("-") for flag in flags):
            assert settings["set_by"][name].startswith(f"presets.{block}: "), (block, name)
    with pytest.raises(InputError, match="--method coop: there are no settings of it for --generator weaktr"):
        parsed("train_prompt", "--method", "coop", "--generator", "weaktr")
    with pytest.raises(InputError, match="--network mask2former: there is no --preset quick of it"):
        parsed("train_seg", "--network", "mask2former", "--preset", "quick")


def test_every_row_has_the_block_that_its_key_names():
    """("weaktr", "pole") on COCO has POLE_WEAKTR_COCO, and so on."""
    data_names = {"voc12": "{}", "folder": "{}", "coco14": "{}_COCO", "quick": "QUICK_{}", "toy": "TOY_{}"}
    for data, methods in presets.TRAIN_PROMPT.items():
        for (generator, method), block in methods.items():
            name = method.upper() + ("_WEAKTR" if generator == "weaktr" else "")
            assert block["block"] == data_names[data].format(name)
    for (data, network), block in presets.TRAIN_SEG.items():
        folder = "_FOLDER" if (data, network) == ("folder", "mask2former") else ""
        assert block["block"] == data_names[data].format(network.upper()) + folder
    for (data, generator), block in presets.TRAIN_CAM.items():
        assert ("WEAKTR" in block["block"]) == (generator == "weaktr")
        assert ("CLIP" in block["block"]) == (generator == "clip") == ("clip" in block)
        assert ("TOY" in block["block"]) == (data == "toy") and ("QUICK" in block["block"]) == (data == "quick")


def test_what_clip_sees():
    """As the releases show it on the data sets of their figures, and else as CLIP was trained."""
    for dataset, view in (("voc12", "release"), ("coco14", "release"), ("folder", "clip"), ("toy", "clip")):
        for method in ("clims", "pole", "semples", "both"):
            settings = parsed("train_prompt", "--dataset", dataset, "--method", method)
            assert settings["clip_view"] == view, (dataset, method)
    assert presets.TRAIN_PROMPT["folder"] is presets.TRAIN_PROMPT["voc12"]


def test_own_images_get_no_threshold_that_was_chosen_on_voc():
    for flags, threshold in (([], "otsu"), (["--refine", "color"], "otsu"), (["--refine", "crf"], "otsu"),
                             (["--generator", "weaktr"], "otsu"), (["--generator", "clip"], "alpha"),
                             (["--preset", "quick"], "alpha"), (["--preset", "quick", "--refine", "irn"], "otsu"),
                             (["--preset", "quick", "--generator", "resnet"], "otsu")):
        assert parsed("make_pseudo", "--dataset", "folder", *flags)["threshold"] == threshold, flags
    assert parsed("make_pseudo")["threshold"] == 0.2
    assert parsed("make_pseudo", "--dataset", "coco14")["threshold"] == 0.25


def test_methods_of_one_frame_share_its_values():
    """What POLE, CLIMS, the hand-written template, CoOp, target and DeFo have in common on each data set."""
    own = {"block", "source", "class_prompt", "adapter", "template", "joint", "prompt_lr", "schedule", "epochs"}
    for data, methods in presets.TRAIN_PROMPT.items():
        frame = {name: value for name, value in methods["resnet", "pole"].items() if name not in own}
        for method in ("clims", "manual", "coop", "target", "defo"):
            block = methods["resnet", method]
            differing = {name for name, value in frame.items() if block.get(name) != value}
            allowed = {"w_suppress", "lr", "batch_size"} if (data, method) == ("coco14", "clims") else set()
            assert differing <= allowed, (data, method, differing)
            assert block.keys() - own == frame.keys(), (data, method)
        templates = {method: methods["resnet", method]["template"] for method in ("coop", "target", "defo")}
        assert templates == {"coop": "[S:a photo of] {}.", "target": "a photo of [C:{}].",
                             "defo": "[S:a photo of] [C:{}]."}
    for generator, suffix in (("resnet", ""), ("weaktr", "_WEAKTR")):
        voc = presets.TRAIN_PROMPT["voc12"][generator, "semples"]
        coco = presets.TRAIN_PROMPT["coco14"][generator, "semples"]
        changed = {name for name, value in coco.items() if voc.get(name) != value} - {"block", "source"}
        network = {"pooling", "reduction", "scales", "crowds"}
        assert changed - network == {"person", "w_bg", "w_suppress", "w_prompt_class", "lr", "match_lr", "batch_size",
                                     "prompt_lr"}, suffix
        assert [coco[name] for name in ("w_bg", "w_suppress", "w_prompt_class", "prompt_lr")] == [0.75, 0.2, 0.01, 0.0025]
    for table in (presets.TRAIN_CAM, *presets.TRAIN_PROMPT.values()):  # SemPLeS' truth serves WeakTr on COCO alone
        for row, block in table.items():
            assert (block.get("crowds") == "class") == (block["block"].endswith("_COCO") and "weaktr" in row), row
    assert presets.TRAIN_PROMPT["coco14"]["resnet", "both"]["w_fg"] == 2.0
    assert presets.TRAIN_PROMPT["coco14"]["resnet", "both"]["w_bg"] == 14.0
    pole = presets.TRAIN_PROMPT["coco14"]["resnet", "pole"]
    assert [pole[name] for name in ("w_fg", "w_bg", "w_suppress", "suppress_threshold")] == [2, 14, 1.25, 0.285]


@pytest.mark.smoke
def test_published_values():
    clims = parsed("train_prompt", "--method", "clims")
    assert [clims[name] for name in ("w_fg", "w_bg", "w_suppress", "w_area")] == [10, 24, 1, 0.2]
    assert (clims["suppress_threshold"], clims["suppress_reduction"]) == (0.26, "sum")
    assert (clims["lr"], clims["epochs"], clims["schedule"]) == (2.5e-4, 15, "poly")
    pole = parsed("train_prompt", "--method", "pole")
    assert (pole["adapter"], pole["epochs"], pole["schedule"], pole["class_prompt"]) == ("learnable", 10, "cosine", "word")
    semples = parsed("train_prompt", "--method", "semples")
    assert [semples[name] for name in ("w_fg", "w_bg", "w_prompt_class", "w_suppress")] == [1, 2.4, 0.02, 0.05]
    coco = parsed("train_prompt", "--method", "semples", "--dataset", "coco14")
    assert [coco[name] for name in ("w_bg", "w_prompt_class", "w_suppress", "lr")] == [0.75, 0.01, 0.2, 2.4e-7]
    coco = parsed("train_prompt", "--method", "clims", "--dataset", "coco14")
    assert [coco[name] for name in ("w_fg", "w_bg", "w_suppress", "lr", "epochs")] == [2, 14, 1.25 / 2, 5e-4, 8]
