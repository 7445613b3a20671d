"""One command line for all five scripts: shared flags, presets by data set and method, default folders."""
import argparse
import json
import sys
from pathlib import Path

from .cam_files import FORMATS
from .datasets import DATASETS
from .errors import InputError

PRESETS = Path(__file__).parent / "assets" / "presets.json"


def script_parser(description: str, training: dict | None = None) -> argparse.ArgumentParser:
    """A parser with every script's flags; `training`, the stage's own defaults, adds the training flags."""
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="voc12", help="which data; chooses its presets too")
    add("--data-root", type=Path, help="the data's folder (toy: drawn there on demand)")
    add("--split", default="train", help="the split to work on")
    add("--runs", type=Path, default=Path("runs"), help="default inputs and outputs: RUNS/DATASET/STAGE")
    add("--out", type=Path, help="this run's folder instead of the default one")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one")
    add("--seed", type=int, default=0, help="seed of every random choice")
    add("--workers", type=int, default=2, help="processes that load or write data beside this one")
    add("--skip-bad", action="store_true", help="leave bad files out and list them instead of stopping")
    add("--overwrite", action="store_true", help="start anew in a folder that holds a run")
    if training is not None:
        add("--resume", action="store_true", help="go on exactly where an interrupted run stopped")
        add("--batch-size", type=int, help="images in a step")
        add("--epochs", type=int, help="passes over the split")
        add("--lr", type=float, help="learning rate of the backbone")
        add("--optimizer", choices=("sgd", "adamw"), help="optimiser")
        add("--schedule", choices=("poly", "cosine", "constant"), help="learning-rate schedule, per step")
        add("--weight-decay", type=float, help="weight decay")
        add("--momentum", type=float, default=0.9, help="momentum of sgd")
        add("--warmup", type=int, default=0, help="steps of linear warm-up")
        add("--clip-norm", type=float, default=0.0, help="clip the gradient's norm; 0 does not")
        add("--precision", choices=("auto", "fp32", "bf16"), default="fp32",
            help="bf16 trains under autocast; auto where the device is fast at it")
        parser.set_defaults(**training)
    return parser


def generator_flags(parser: argparse.ArgumentParser, frozen_bn: bool) -> None:
    """Flags of the CAM generator, for the scripts that train it; `frozen_bn` is the default of that flag."""
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--freeze-stages", type=int, default=1, help="1: the stem; 3: also layer1-2 (IRN's released code)")
    add("--frozen-bn", action=switch, default=frozen_bn, help="keep batch norm statistics (IRN's classifier)")
    add("--head-ratio", type=float, default=10.0, help="learning rate of the classifier over the backbone's")
    add("--crop-size", type=int, default=512, help="side of the training crop")
    add("--resize-long", type=int, nargs=2, default=(320, 640), metavar=("LO", "HI"),
        help="range of the long side before cropping; 0 0 keeps images as they are")
    add("--brightness", type=float, default=0.0, help="random gain of 1 +- this in training")
    add("--scales", type=float, nargs="+", default=(1.0, 0.5, 1.5, 2.0), help="scales of the CAMs")
    add("--flip", action=switch, default=True, help="add the mirror image's maps")
    add("--cam-batch-size", type=int, default=4, help="images of one size per forward pass when making CAMs")
    add("--cam-format", choices=tuple(FORMATS), default="npz", help="npz without pickle, or IRN's .npy")


def parse(parser: argparse.ArgumentParser, argv: list[str] | None, stage: str) -> argparse.Namespace:
    """Parse with presets as defaults: method's, data set's, pair's, then background prompt's or refinement's.

    Explicit flags win. Fills `out` and `data_root`; InputError where --data-root is needed and missing.
    """
    argv = sys.argv[1:] if argv is None else argv
    presets = json.loads(PRESETS.read_text()).get(stage, {})
    for selector in ("method", "background_prompt", "refine"):
        first, _ = parser.parse_known_args([word for word in argv if word not in ("-h", "--help")])
        value = str(getattr(first, selector, None)).split("+")[0]
        general = (value, first.dataset) if selector == "method" else (value,)
        for key in (*general, f"{first.dataset}/{value}"):
            parser.set_defaults(**presets.get(key, {}))
    args = parser.parse_args(argv)
    args.out = args.out or stage_folder(args.runs, args.dataset, stage)
    if args.data_root is None:
        if args.dataset != "toy" and not getattr(args, "predict", None):  # own images need no data set
            raise InputError(f"--data-root: say where the {args.dataset} data is")
        args.data_root = args.runs / "toy" / "data"
    return args


def stage_folder(runs: Path, dataset: str, stage: str) -> Path:
    """RUNS/DATASET/STAGE, where a stage leaves its results and the next one looks for them."""
    return Path(runs) / dataset / stage
