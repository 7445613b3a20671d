"""The command line that the five scripts share: common flags, preset values, default folders."""
import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .datasets import CROWDS, DATASETS, MOST_PIXELS, TagDataset, build_dataset
from .distributed import world_size
from .errors import InputError
from .flags import Parser, ShowEssential, real, whole
from .presets import DATA_SET_VALUES, find_block, usual_choices
from .run import Run, fingerprint_inputs, refuse_overlap
from .training import OPTIMIZERS, PRECISIONS, SCHEDULES, Training

EXIT_STATUS = "exit status: 0 success, 2 wrong input or a fault of the machine, 130 interrupted"
COMMAND_LINE = "the command line"  # what `set_by` says of a flag that was given
ESSENTIAL = ("dataset", "data_root", "preset", "split", "skip_bad", "out", "quiet", "device", "seed",
             "overwrite", "resume", "batch_size", "epochs", "lr")


def script_parser(description: str, example: str, essential: Sequence[str] = ()) -> Parser:
    """A script's parser with the flags of the data; `example`, a command line, ends its help.

    --help shows the flags of ESSENTIAL and the script's own `essential` ones, --help-all shows all flags.
    """
    parser = Parser(description=description, epilog=f"example:\n  {example}\n\n{EXIT_STATUS}",
                    usage="%(prog)s [flags]  (--help-all shows every flag)", add_help=False)
    parser.add_argument("-h", "--help", action=ShowEssential, nargs=0, default=argparse.SUPPRESS,
                        const=("help", "help_all", *ESSENTIAL, *essential),
                        help="show this help message and exit")
    parser.add_argument("--help-all", action="help", help="show every flag and exit")
    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=tuple(DATASETS), default="voc12",
        help="data set (folder: your own images); the defaults of other flags depend on it")
    add("--data-root", type=Path, help="folder of the data set (toy: drawn if it is missing)")
    add("--preset", choices=("paper", "quick"), default="paper",
        help="defaults of the other flags: as published, or for a quick run on 2 CPU cores")
    add("--split", default="train", help="split of the data set that the script works on")
    add("--crowds", choices=CROWDS, default="background",
        help="coco14: crowd regions in the true masks are background (CLIMS' release), ignored, or of their "
        "class, with the first annotation of a pixel on top of later ones (SemPLeS' release)")
    add("--max-pixels", type=whole(16), default=MOST_PIXELS,
        help="largest number of pixels of an image; a larger image is an error and is not decoded")
    add("--skip-bad", action="store_true",
        help="leave out and list images with missing or damaged files, instead of stopping")
    return parser


def run_flags(parser: argparse.ArgumentParser) -> Callable[..., argparse.Action]:
    """The group of flags of every script that say where a run's files lie and how it is carried out.

    Returns the group's add_argument.
    """
    add = parser.add_argument_group("run").add_argument
    add("--runs", type=Path, default=Path("runs"),
        help="folder of all runs; each script reads and writes RUNS/DATASET/SCRIPT by default")
    add("--out", type=Path, help="folder of this run (default: RUNS/DATASET/SCRIPT)")
    add("--workers", type=whole(0, 256), default=2,
        help="number of additional processes that load or write data")
    add("--dry-run", action="store_true",
        help="print every setting and the preset block that set it, as JSON, and stop")
    add("--quiet", action="store_true", help="print warnings and errors only")
    return add


def training_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the run and of the optimiser, for the scripts that train; presets/ has their values."""
    add = run_flags(parser)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="device to compute on; auto takes CUDA where it is available")
    add("--tensorboard", action="store_true",
        help="also write the log for TensorBoard (needs the package tensorboard)")
    add("--seed", type=whole(0, 2**32 - 1), default=0, help="seed of all random numbers")
    add("--overwrite", action="store_true", help="delete the run that the folder holds, and start anew")
    add("--resume", action="store_true", help="continue an interrupted run exactly where it stopped")
    add = parser.add_argument_group("training").add_argument
    add("--crop-size", type=whole(16, 4096),
        help="side of the training crops in pixels")
    add("--brightness", type=real(0, 1), default=0.0,
        help="strength B of random brightness: pixel values in [0, 1] of a training image are multiplied by "
        "1 - B to 1 + B, and up to B / 4 is added or subtracted")
    add("--batch-size", type=whole(1, 65536), help="number of images in a batch, all processes together")
    add("--epochs", type=whole(0), help="passes over the training images")
    add("--lr", type=real(0, 100),
        help="learning rate; that of the backbone, where new layers have a multiple of it")
    add("--optimizer", choices=OPTIMIZERS, help="optimiser of the networks")
    add("--schedule", choices=SCHEDULES,
        help="learning rate at a share t of all steps: poly is (1 - t)^0.9 times --lr, cosine falls to "
        "--min-lr, constant stays")
    add("--weight-decay", type=real(0, 100), help="weight decay of the optimiser")
    add("--momentum", type=real(0, 1), default=0.0, help="momentum of --optimizer sgd")
    add("--warmup", type=whole(0), default=0,
        help="number of steps in which the learning rate rises linearly to --lr")
    add("--min-lr", type=real(0, 100), default=0.0,
        help="learning rate at which --schedule cosine ends, where it starts at --lr")
    add("--clip-norm", type=real(0), default=0.0,
        help="norm to which larger gradients are clipped; 0 disables gradient clipping")
    add("--precision", choices=PRECISIONS, default="fp32",
        help="number format in training; bf16 is torch's autocast to bfloat16, and auto takes it where the "
        "device supports it natively")
    add("--compile", action="store_true", help="compile the networks by torch.compile before training")
    add("--sync-bn", action="store_true",
        help="with several GPUs: batch norm that trains takes its statistics from the images of all GPUs")


def parse(parser: argparse.ArgumentParser, argv: list[str] | None, stage: str) -> argparse.Namespace:
    """Parse the command line with the values of its preset block as defaults.

    Fills `out` and `data_root` with their default folders. `set_by` says of each setting that is not the
    script's neutral default what set it: a block of presets/, or the command line. InputError where
    --data-root is needed and missing.
    """
    argv = sys.argv[1:] if argv is None else argv
    without_help = [word for word in argv if word not in ("-h", "--help", "--help-all")]
    selecting, _ = parser.parse_known_args(without_help)
    defaults = {name: parser.get_default(name) for name in vars(selecting)}
    usual = usual_choices(stage, selecting.dataset, selecting.preset)
    parser.set_defaults(**usual)
    selecting, _ = parser.parse_known_args(without_help)
    selectors = ("generator", "method", "network", "weights", "refine")
    choices = {name: getattr(selecting, name, None) for name in selectors}
    block = find_block(stage, selecting.dataset, selecting.preset, choices)
    of_data_set = DATA_SET_VALUES.get(stage, {}).get(selecting.dataset, {})
    values = {name: value for name, value in block.items() if name not in ("block", "source")}
    parser.set_defaults(**values, **of_data_set)
    args = parser.parse_args(argv)

    args.set_by = {name: f"presets.{block['block']}: {block['source']}" for name in values}
    args.set_by |= dict.fromkeys(of_data_set, "presets.DATA_SET_VALUES")
    args.set_by |= dict.fromkeys(usual, "presets.usual_choices")
    for word in argv:
        action = parser._option_string_actions.get(word.partition("=")[0])  # --flag, or --flag=value
        if action is not None:
            args.set_by[action.dest] = COMMAND_LINE
    if args.dry_run:
        shown = {name: value for name, value in vars(args).items() if name != "set_by"}
        print(json.dumps({"settings": shown, "defaults": defaults, "set_by": args.set_by}, default=str))
        raise SystemExit(0)
    args.stage = stage
    args.out = args.out or args.runs / args.dataset / stage
    if args.data_root is None:
        needs_no_data = getattr(args, "predict", None) or getattr(args, "report", None)
        if args.dataset != "toy" and not needs_no_data:
            raise InputError(f"--data-root: give the folder of the {args.dataset} data")
        args.data_root = args.runs / "toy" / "data"
    return args


def training_settings(args: argparse.Namespace, label: str, **changes: object) -> Training:
    """The `Training` that the command line asks for, under this label; `changes` replace some values."""
    asked = {name: value for name, value in vars(args).items() if name in Training._fields}
    return Training(**{**asked, "label": label, **changes})


def open_dataset(args: argparse.Namespace, split: str | None = None) -> TagDataset:
    """The data set of the command line, of --split or of another split."""
    return build_dataset(args.dataset, args.data_root, split or args.split, args.skip_bad, args.crowds,
                         args.max_pixels)


def open_scored(args: argparse.Namespace, dataset: TagDataset) -> TagDataset:
    """The data set of --score-split, or `dataset` where that is the same split.

    InputError where --score-split has an image that is not in `dataset`.
    """
    if args.score_split in (None, args.split):
        return dataset
    scored = open_dataset(args, args.score_split)
    if outside := set(scored.names) - set(dataset.names):
        raise InputError(f"--score-split {args.score_split}: image {min(outside)} is not in --split "
                         f"{args.split}, and neither are {len(outside) - 1} others")
    return scored


def start_run(args: argparse.Namespace, dataset: TagDataset | None, **inputs: Path | str | None) -> Run:
    """The run's folder, once everything else has been checked; `inputs` are the files it reads, by setting.

    InputError where --out belongs to another run, or overlaps with what is read.
    """
    read = {name: Path(path) for name, path in inputs.items() if path is not None and Path(path).exists()}
    data_folders = dataset.folders if dataset else ()
    refuse_overlap("--out", args.out, data_folders, args.data_root, read)
    marks = fingerprint_inputs(read)
    if dataset:
        marks["data_root"] = (f"the data in {args.data_root}", dataset.fingerprint())
    return Run(args.out, vars(args), args.resume, args.overwrite, marks)


def refuse_unused(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """InputError where the command line gives one of these settings; `why` it means nothing there."""
    for name in names:
        if args.set_by.get(name) == COMMAND_LINE:
            raise InputError(f"--{name.replace('_', '-')}: {why}; leave the flag out")


def of_last_stage(args: argparse.Namespace, name: str) -> Path:
    """The result of this name of train_prompt.py, or of train_cam.py where train_prompt.py has not begun."""
    guided = args.runs / args.dataset / "train_prompt" / name
    first = args.runs / args.dataset / "train_cam" / name
    return first if first.exists() and not guided.parent.exists() else guided


def say_stage(result: Path | str) -> None:
    """Print that a result of `of_last_stage` comes from train_cam.py, where it does."""
    if Path(result).parent.name == "train_cam":
        print(f"train_prompt.py has not run: {result} is taken, which train_cam.py made")


def first_command(args: argparse.Namespace, script: str, *flags: str) -> str:
    """What an error tells of the script whose results are missing: its command line, with further `flags`."""
    words = ["python", f"{script}.py", "--dataset", args.dataset, *flags]
    for name in ("data_root", "preset", "runs"):
        if args.set_by.get(name) == COMMAND_LINE:
            words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return f"run first: {shlex.join(words)}"


def drops_rest(args: argparse.Namespace, images: int, batch_size: int) -> bool:
    """Whether an epoch leaves out the last images, which do not fill a batch; a line says how many.

    Published data sets do, as in the releases. Of own photographs every image is used, unless a single one
    is left, on which batch norm cannot train, or several processes share a batch.
    """
    rest = images % batch_size
    if images < batch_size or rest == 0:
        return False
    if args.dataset == "folder" and rest > 1 and world_size() == 1:
        return False
    print(f"--batch-size {batch_size}: each epoch leaves out {rest} of {images} images, which do not fill a "
          "batch; they are others in every epoch")
    return True


def say_absent_classes(args: argparse.Namespace, dataset: TagDataset) -> None:
    """Print which classes no image of the split is tagged with."""
    absent = [name for name, present in zip(dataset.classes, dataset.labels.any(0).tolist()) if not present]
    if absent:
        print(f"note: no image of --split {args.split} is tagged with {', '.join(absent)} ({len(absent)} of "
              f"{len(dataset.classes)} classes), so that nothing is learned about it")


def start_weights(args: argparse.Namespace) -> str | Path:
    """--weights, where `generator` stands for the file of train_prompt.py.

    Where train_prompt.py has not run, this is the file of train_cam.py. `auto` stands for this file where
    there is one, and for ImageNet's weights otherwise.
    """
    generator = of_last_stage(args, "generator.pt")
    if args.weights == "generator" or (args.weights == "auto" and generator.is_file()):
        return generator
    if args.weights == "auto":
        return "imagenet"
    return args.weights
