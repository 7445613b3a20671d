"""The rows of an ablation: read from a table, carried on to masks and segmenters, with all they start from.

The tables are in assets/tables.json. A table has these entries:

    title           its heading
    rows            its rows; a row comes after the rows that it starts from
    through         the last stage that is run for each row (default: train_prompt)
    reference       the row that the other rows are compared with
    make_pseudo     flags of make_pseudo.py for the pseudo masks of all rows
    radar           a row with --class-prompt word, whose chosen words are counted and drawn

A row has these entries:

    name            its name, unique in the table
    flags           its flags; {assets} stands for the folder assets
    toy, voc12, coco14, folder
                    further flags on this data set
    stage           train_cam or train_prompt (default)
    datasets        the data sets on which the row is run (default: all)
    baseline        the train_cam row that a train_prompt row starts from (default: CAM)
    needs           another row that it starts from; {needs} in the flags stands for that run's folder
    against         the rows that it is compared with (default: the table's reference)
    make_pseudo     flags of make_pseudo.py for its own pseudo masks; {segments} stands for --segments
    train_seg       flags of train_seg.py for its own segmenter, which is then compared with no other row's
    paper           the paper's mIoU of its CAMs, or a list: of its CAMs, pseudo masks and segmenter (VOC)
    paper_coco14    the same on COCO 2014
"""
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .datasets import DATASETS
from .errors import InputError
from .guidance.words import ASSETS


class AblationRow(NamedTuple):
    """A row of a table on one data set: the run of one script.

    flags: they contain marks such as {baseline}, each standing for the folder of a run that this one reads.
    starts: the name of the row whose run each mark stands for.
    against: the names of the rows that it is compared with.
    paper: the paper's figures of the row's own stage and of the stages after it, as far as printed.
    mask_flags, segmenter_flags: the row's own flags of make_pseudo.py and train_seg.py.
    """
    name: str
    stage: str
    flags: tuple[str, ...]
    starts: dict[str, str]
    against: tuple[str, ...]
    paper: tuple[str, ...]
    mask_flags: tuple[str, ...] = ()
    segmenter_flags: tuple[str, ...] = ()


BASELINE = AblationRow("CAM", "train_cam", (), {}, (), ())


def read_rows(table: dict, dataset: str, extra: Sequence[str] = ()) -> dict[str, AblationRow]:
    """The table's rows on a data set by name. `extra` flags are added to every train_prompt row."""
    rows = {}
    for entry in table["rows"]:
        if dataset not in entry.get("datasets", DATASETS):
            continue
        name = entry["name"]
        stage = entry.get("stage", "train_prompt")
        flags = shlex.split(entry.get("flags", "")) + shlex.split(entry.get(dataset, ""))
        flags = [flag.replace("{assets}", str(ASSETS)) for flag in flags]
        starts = {}
        if stage == "train_prompt":  # a row's own --init comes later on its command line and wins
            flags = ["--init", "{baseline}/generator.pt", "--cams", "{baseline}/cams", *flags, *extra]
            starts["baseline"] = entry.get("baseline", BASELINE.name)
        if "needs" in entry:
            starts["needs"] = entry["needs"]
        against = entry.get("against", [table["reference"]] if "reference" in table else [])
        paper = entry.get("paper_coco14" if dataset == "coco14" else "paper", [])
        if isinstance(paper, str):
            paper = [paper]
        rows[name] = AblationRow(
            name, stage, tuple(flags), starts, tuple(against), tuple(paper),
            mask_flags=tuple(shlex.split(entry.get("make_pseudo", ""))),
            segmenter_flags=tuple(shlex.split(entry.get("train_seg", ""))))
    return rows


def with_released_cams(row: AblationRow, resnet: Path | None, weaktr: Path | None) -> AblationRow:
    """A row of train_cam that starts from a released file in place of its training.

    resnet, weaktr: the files of the two generators, if there are any. A row that trains for a number of
    epochs of its own, and a row of another script, stay as they are.
    """
    file = weaktr if "weaktr" in row.flags else resnet
    if row.stage != "train_cam" or "--epochs" in row.flags or file is None:
        return row
    return row._replace(flags=(*row.flags, "--init", str(file), "--epochs", "0"))


def later_stages(row: AblationRow, through: str, dataset: str, mask_flags: Sequence[str] = (),
                 segments: Path | None = None, weights: Path | None = None) -> list[AblationRow]:
    """The rows that carry `row` on: its pseudo masks, made with `mask_flags`, and its segmenter.

    segments: the folder that {segments} stands for; InputError where it is missing. weights: the start of
    DeepLab; without it the segmenter starts as its preset says, and on the toy world, which has no
    pre-trained weights, from the row's ResNet, if it has one.
    """
    if through not in ("make_pseudo", "train_seg"):
        return []
    flags = [*mask_flags, *row.mask_flags]
    on_weaktr = "weaktr" in row.flags
    if on_weaktr:  # its masks are made, and on COCO scored, as WeakTr's
        flags = ["--generator", "weaktr", *flags]
    if "{segments}" in flags and segments is None:
        raise InputError(f"row {row.name!r}: its masks are painted from segments; give their folder by "
                         "--segments, or leave the row out by --only")
    flags = [str(segments) if flag == "{segments}" else flag for flag in flags]
    masks = AblationRow(
        name=f"{row.name}, masks", stage="make_pseudo", flags=("--cams", "{cams}/cams", *flags),
        starts={"cams": row.name},
        against=tuple(f"{name}, masks" for name in row.against), paper=row.paper[1:])
    if through == "make_pseudo":
        return [masks]

    flags = ["--masks", "{masks}/masks", *row.segmenter_flags]
    if on_weaktr and dataset == "coco14":
        flags += ["--crowds", "class"]  # as WeakTr's and SemPLeS' releases score
    kind = "segmenter"  # what is said of it beside the row's name
    if row.segmenter_flags:
        kind = f"segmenter ({' '.join(row.segmenter_flags)})"
    elif weights is not None:
        kind = f"segmenter from {weights.name}"
        flags += ["--weights", str(weights)]
    elif dataset == "toy":
        given = set(zip(row.flags, row.flags[1:]))
        without = {("--generator", "weaktr"), ("--generator", "clip"), ("--maps", "clip")}
        flags += ["--weights", "none" if given & without else "{generator}/generator.pt"]
    else:
        kind = "segmenter from imagenet"
    against = () if row.segmenter_flags else tuple(f"{name}, {kind}" for name in row.against)
    segmenter = AblationRow(
        name=f"{row.name}, {kind}", stage="train_seg", flags=tuple(flags),
        starts={"masks": masks.name, "generator": row.name}, against=against, paper=row.paper[2:])
    return [masks, segmenter]


def with_starts(shown: Sequence[AblationRow], known: dict[str, AblationRow]) -> list[AblationRow]:
    """The rows of `known` that are shown or that a shown row starts from, directly or not.

    In `known` a row comes after the rows that it starts from, so that one pass from the end finds them all.
    """
    wanted = {row.name for row in shown}
    for row in reversed(known.values()):
        if row.name in wanted:
            wanted.update(row.starts.values())
    return [row for row in known.values() if row.name in wanted]
