"""One command line for all five scripts: the shared flags, the presets by data set and method, the default folders."""
import argparse
import json
import sys
from pathlib import Path

from .datasets import DATASETS
from .errors import InputError

PRESETS = Path(__file__).parent / "assets" / "presets.json"


def script_parser(description: str, training: dict | None = None) -> argparse.ArgumentParser:
    """A parser with the flags every script has; `training` gives the stage's own defaults and adds the training flags."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="voc12", help="which data; also chooses that data's presets")
    add("--data-root", type=Path, help="the data's folder (toy: drawn there on demand)")
    add("--split", default="train", help="the split to work on")
    add("--runs", type=Path, default=Path("runs"), help="default inputs and outputs live in RUNS/DATASET/STAGE")
    add("--out", type=Path, help="this run's folder instead of the default one")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA where there is one")
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


def parse(parser: argparse.ArgumentParser, argv: list[str] | None, stage: str) -> argparse.Namespace:
    """Parse with presets as defaults: the method's, the data set's, the pair's, then those of background prompt or refinement.

    Explicit flags win. Fills `out` and `data_root` with their default folders. Raises InputError when --data-root is
    needed and missing.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    quiet = [word for word in argv if word not in ("-h", "--help")]
    presets = json.loads(PRESETS.read_text()).get(stage, {})
    for selector in ("method", "background_prompt", "refine"):
        first, _ = parser.parse_known_args(quiet)
        value = str(getattr(first, selector, None)).split("+")[0]
        general = (value, first.dataset) if selector == "method" else (value,)
        for key in (*general, f"{first.dataset}/{value}"):
            preset = presets.get(key, {})
            unknown = set(preset) - set(vars(first))
            if unknown:
                raise InputError(f"{PRESETS}: {stage}/{key} sets unknown options {sorted(unknown)}")
            parser.set_defaults(**preset)
    args = parser.parse_args(argv)
    args.out = args.out or stage_folder(args.runs, args.dataset, stage)
    if args.data_root is None:
        if args.dataset != "toy" and not getattr(args, "predict", None):  # a user's own images need no data set
            raise InputError(f"--data-root: say where the {args.dataset} data is")
        args.data_root = args.runs / "toy" / "data"
    return args


def stage_folder(runs: Path, dataset: str, stage: str) -> Path:
    """RUNS/DATASET/STAGE, where a stage leaves its results and the next one looks for them."""
    return Path(runs) / dataset / stage
