"""The values of all published settings, as blocks: one for each stage, data set and method or network.

Each script has a module of its name here, with its blocks and, at the end, the table that says which one a
command takes. To its block a command adds the values of its data set (`DATA_SET_VALUES`). A flag on the
command line replaces a value; a setting that neither names has the neutral default that `--help-all` shows. A
block names at most one other block as its base. No block depends on the value of a setting, and no key stands
in both a block and `DATA_SET_VALUES`. `block` is the block's own name, which `--dry-run` and report.html
show, and `source` says where its values come from. guidance/SETTINGS.md sets paper, release and these values
side by side.

"paper" values serve VOC 2012, COCO 2014 and folders of one's own images. `toy` (--dataset toy) and `quick`
(--preset quick) have blocks of their own; those of `quick` are the same for every data set but the toy world.
"""
from ..errors import InputError
from .make_pseudo import MAKE_PSEUDO
from .train_cam import TRAIN_CAM
from .train_prompt import TRAIN_PROMPT
from .train_seg import TRAIN_SEG, TRAIN_SEG_FROM_IMAGENET

# What a data set sets for all blocks of a stage: the splits that the papers train on and score, the box of
# CLIP's own maps (CLIP-ES), and the view of CLIP that the releases have. Their thresholds and weights were
# tuned under that view; on a folder CLIP sees images as it was trained on.
DATA_SET_VALUES = {
    "train_cam": {"voc12": dict(split="train_aug", score_split="train", cam_format="full"),
                  "coco14": dict(box=0.7),
                  "folder": dict(val_split="")},
    "train_prompt": {"voc12": dict(split="train_aug", score_split="train", cam_format="full",
                                   clip_view="release"),
                     "coco14": dict(box=0.7, clip_view="release")},
    "make_pseudo": {"voc12": dict(split="train_aug", score_split="train")},
    "train_seg": {"voc12": dict(split="train_aug"), "folder": dict(predict_split="train")},
}


def usual_choices(stage: str, dataset: str, preset: str) -> dict[str, str]:
    """What selects the block where the command line does not: `--preset quick` works with CLIP alone."""
    if preset != "quick" or dataset == "toy":
        return {}
    if stage in ("train_cam", "make_pseudo"):
        return {"generator": "clip"}
    if stage == "train_prompt":
        return {"method": "both"}
    return {}


def find_block(stage: str, dataset: str, preset: str, choices: dict[str, object]) -> dict:
    """The block of a command; {} for eval.py, which has no settings to preset.

    dataset, preset: --dataset and --preset. choices: what else selects a block, by flag: `generator` and
    `method`, `refine` (None where it was not given), or `network` and `weights`. InputError where there is no
    such block.
    """
    data = dataset
    if preset == "quick" and dataset != "toy":
        data = "quick"
    if stage == "train_cam":
        return TRAIN_CAM[data, choices["generator"]]
    if stage == "train_prompt":
        methods = TRAIN_PROMPT[data]
        generator = choices["generator"]
        if (generator, choices["method"]) not in methods:
            valid = [method for kind, method in methods if kind == generator]
            raise InputError(f"--method {choices['method']}: there are no settings of it for --generator "
                             f"{generator} on this data set; there are for {', '.join(valid)}")
        return methods[generator, choices["method"]]
    if stage == "make_pseudo":
        blocks = MAKE_PSEUDO[data, choices["generator"]]
        if choices["refine"] is None:
            return blocks["default"]
        walks = [name for name in choices["refine"] if name in ("irn", "psa", "color")]
        return blocks[walks[0] if walks else "none"]
    if stage == "train_seg":
        if (data, choices["network"]) not in TRAIN_SEG:
            raise InputError(f"--network {choices['network']}: there is no --preset quick of it")
        if choices["weights"] == "imagenet" and (data, choices["network"]) in TRAIN_SEG_FROM_IMAGENET:
            return TRAIN_SEG_FROM_IMAGENET[data, choices["network"]]
        return TRAIN_SEG[data, choices["network"]]
    return {}
