"""One command line for all five scripts: flags in groups, presets as ordered rules, default folders."""
import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from torch.utils.data import DataLoader

from .cams.cam_files import FORMATS
from .cams.generator import GENERATORS
from .datasets import CROWDS, DATASETS, TagDataset, build_dataset
from .datasets.loaders import make_loader
from .datasets.reading import MOST_PIXELS, Checked
from .datasets.transforms import AUGMENTS, area_transform, train_transform
from .errors import InputError
from .flags import Ascending, ScriptParser, real, whole
from .run import Run, refuse_overlap, fingerprint_inputs
from .training import OPTIMIZERS, SCHEDULES, Training

PRESETS = Path(__file__).parent / "assets" / "presets.json"
UNSET = object()
ESSENTIAL = ("dataset", "data_root", "preset", "split", "skip_bad", "out", "quiet", "device", "seed",
             "overwrite", "resume", "batch_size", "epochs", "lr")


def script_parser(description: str, example: str, essential: Sequence[str] = ()) -> ScriptParser:
    """A script's parser with the data's flags; `example`, a command line, ends its help.

    The short help shows ESSENTIAL flags and the script's own `essential` ones.
    """
    parser = ScriptParser(description, example, (*ESSENTIAL, *essential))
    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=tuple(DATASETS), default="voc12", help="which data; chooses its presets too")
    add("--data-root", type=Path, help="the data's folder (toy: drawn there on demand)")
    add("--preset", choices=("paper", "quick"), default="paper", help="quick: for 2 CPU cores")
    add("--split", default="train", help="the split to work on")
    add("--crowds", choices=tuple(CROWDS), default="background", help="coco14: how its masks count crowds "
        "(background as in CLIMS' release)")
    add("--max-pixels", type=whole(16), default=MOST_PIXELS, help="larger images are refused unread")
    add("--skip-bad", action="store_true", help="leave bad files out and list them instead of stopping")
    return parser


def run_flags(parser: argparse.ArgumentParser) -> Callable[..., argparse.Action]:
    """Where a run's files lie and how it is carried out: the flags of every script, in a group of their own.

    Returns that group's add_argument.
    """
    add = parser.add_argument_group("run").add_argument
    add("--runs", type=Path, default=Path("runs"), help="default inputs and outputs: RUNS/DATASET/STAGE")
    add("--out", type=Path, help="this run's folder instead of the default one")
    add("--workers", type=whole(0, 256), default=2, help="processes that load or write data beside this one")
    add("--dry-run", action="store_true", help="print every setting and what set it, as JSON, and stop")
    add("--quiet", action="store_true", help="print nothing but errors")
    return add


def training_flags(parser: argparse.ArgumentParser, resumes: bool = True, **defaults: object) -> None:
    """Run and optimiser flags of the scripts that train; `defaults` are the stage's own values."""
    add = run_flags(parser)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one")
    add("--tensorboard", action="store_true", help="also log for TensorBoard (package tensorboard)")
    add("--seed", type=whole(0, 2**32 - 1), default=0, help="seed of every random choice")
    add("--overwrite", action="store_true", help="start anew in a folder that holds a run")
    if resumes:
        add("--resume", action="store_true", help="go on exactly where a run was interrupted")
    add = parser.add_argument_group("training").add_argument
    add("--crop-size", type=whole(16, 4096),
        help="side of the training crop; --refine irn also pads smaller images to it")
    add("--brightness", type=real(0, 1), default=0.0, help="random gain of 1 +- this in training")
    add("--batch-size", type=whole(1, 65536), help="images in a step")
    add("--epochs", type=whole(0), help="passes over the split")
    add("--lr", type=real(0, 100), help="learning rate of the backbone")
    add("--optimizer", choices=OPTIMIZERS, help="optimiser")
    add("--schedule", choices=SCHEDULES, help="learning-rate schedule, per step")
    add("--weight-decay", type=real(0, 100), help="weight decay")
    add("--momentum", type=real(0, 1), help="momentum of sgd")
    add("--warmup", type=whole(0), default=0, help="steps of linear warm-up")
    add("--clip-norm", type=real(0), default=0.0, help="clip the gradient's norm; 0 does not")
    add("--precision", choices=("auto", "fp32", "bf16"), default="fp32",
        help="bf16 trains under autocast; auto where the device is fast at it")
    add("--compile", action="store_true", help="train with compiled networks (torch.compile)")
    add("--sync-bn", action="store_true", help="batch norm over all of torchrun's processes (GPUs)")
    parser.set_defaults(**defaults)


def generator_flags(parser: argparse.ArgumentParser, frozen_bn: bool, freeze_stages: int) -> None:
    """Flags of the CAM generator, for the scripts that train it, with the script's defaults of two."""
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("generator").add_argument
    add("--generator", choices=tuple(GENERATORS), default="resnet",
        help="kind of network that makes the maps")
    add("--freeze-stages", type=whole(0, 5), default=freeze_stages,
        help="resnet, 1: the stem (CLIMS); 3: also layer1 and layer2 (IRN's classifier)")
    add("--frozen-bn", action=switch, default=frozen_bn, help="resnet: keep batch norm statistics (IRN's)")
    add("--pooling", choices=("avg", "max"), default="max", help="weaktr: of attention features over tokens")
    add("--reduction", type=whole(1, 16), default=8, help="weaktr: heads over the fusion's inner width")
    add("--drop-path", type=real(0, 0.9), default=0.1, help="weaktr: how often the last block is left out")
    add("--head-ratio", type=real(0, 1e4), default=10.0,
        help="learning rate of the new layers over the backbone's")
    add("--resize-long", type=whole(0, 16384), nargs=2, default=(320, 640), metavar=("LO", "HI"),
        action=Ascending, help="range of the long side before cropping; 0 0 keeps images as they are")
    add("--augment", choices=AUGMENTS, default="crop", help="for the three above: parts of any size and "
        "shape (area), and RandAugment and erasing too (strong), as DeiT")
    add = parser.add_argument_group("CAMs").add_argument
    add("--score-split", help="split whose CAMs are scored by masks (default: --split)")
    add("--scales", type=real(0.1, 8), nargs="+", default=(1.0, 0.5, 1.5, 2.0), help="scales of the CAMs")
    add("--flip", action=switch, default=True, help="add the mirror image's maps")
    add("--cam-batch-size", type=whole(1, 65536), default=4,
        help="images of one size per forward pass when making CAMs")
    inference_flags(add)
    add("--cam-format", choices=tuple(FORMATS), default="npz",
        help="npz: maps at a quarter of the size; full: at full size too; irn, psa (and WeakTr): .npy")


def inference_flags(add: Callable[..., argparse.Action]) -> None:
    """How networks are used once they are trained."""
    add("--test-precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="of networks that are not training; auto: bf16 where the device is fast at it")


def parse(parser: argparse.ArgumentParser, argv: list[str] | None, stage: str) -> argparse.Namespace:
    """Parse with the stage's rules as defaults; explicit flags win. Fills `out`, `data_root` and `set_by`.

    `set_by` says of each setting that is not the script's own default what set it: a rule's "from", or the
    command line. InputError where --data-root is needed and missing.
    """
    argv = sys.argv[1:] if argv is None else argv
    defaults = vars(parser.parse_args([]))
    first = argparse.Namespace(**dict.fromkeys(defaults, UNSET))
    parser.parse_known_args([word for word in argv if word not in ("-h", "--help", "--help-all")], first)
    given = {name: value for name, value in vars(first).items() if value is not UNSET}
    settings, set_by = apply_rules(json.loads(PRESETS.read_text()).get(stage, []), defaults, given)
    parser.set_defaults(**{name: settings[name] for name in set_by})
    args = parser.parse_args(argv)
    args.set_by = {**set_by, **dict.fromkeys(given, "the command line")}
    if args.dry_run:
        shown = {name: value for name, value in vars(args).items() if name != "set_by"}
        print(json.dumps({"settings": shown, "defaults": defaults, "set_by": args.set_by}, default=str))
        raise SystemExit(0)
    args.stage, args.out = stage, args.out or stage_folder(args.runs, args.dataset, stage)
    if args.data_root is None:
        alone = getattr(args, "predict", None) or getattr(args, "report", None)  # they need no data set
        if args.dataset != "toy" and not alone:
            raise InputError(f"--data-root: say where the {args.dataset} data is")
        args.data_root = args.runs / "toy" / "data"
    return args


def apply_rules(rules: list[dict], defaults: dict, given: dict) -> tuple[dict, dict[str, str]]:
    """(settings, what set those that rules set): each rule whose "when" holds sets what is not `given`.

    Rules apply from top to bottom, so that later ones win, and see what earlier ones have set. A "when"
    names settings and the value, or one of the values, each must have; of a list, an element it must hold.
    """
    def holds(setting: object, wanted: object) -> bool:
        elements = setting if isinstance(setting, list | tuple) else [setting]
        return any(value in elements for value in (wanted if isinstance(wanted, list) else [wanted]))

    settings, set_by = {**defaults, **given}, {}
    for rule in rules:
        if all(holds(settings.get(name), value) for name, value in rule["when"].items()):
            changes = {name: value for name, value in rule["set"].items() if name not in given}
            settings |= changes
            set_by |= dict.fromkeys(changes, rule["from"])
    return settings, set_by


def training_settings(args: argparse.Namespace, label: str, **changes: object) -> Training:
    """The `Training` that the command line asks for, under this label; `changes` replace some of it."""
    asked = {name: value for name, value in vars(args).items() if name in Training._fields}
    return Training(**{**asked, "label": label, **changes})


def generator_settings(args: argparse.Namespace) -> dict[str, object]:
    """The constructor arguments of the generator that the command line asks for, without its weights.

    InputError: a backbone of another kind.
    """
    kind = GENERATORS[args.generator]
    settings = {name: value for name, value in vars(args).items() if name in ("backbone", *kind.options)}
    if "backbone" in settings and settings["backbone"] not in kind.backbones:
        raise InputError(f"--backbone {settings['backbone']}: --generator {args.generator} has "
                         f"{', '.join(kind.backbones)}")
    return settings


def crop_loader(args: argparse.Namespace, dataset: TagDataset, batch_size: int, multiple: int = 1,
             augment: str | None = None) -> DataLoader:
    """A loader of the generator's training crops as the command line asks for them, or by another `augment`.

    InputError where their side is no `multiple`.
    """
    augment = augment or args.augment
    if args.crop_size % multiple:
        raise InputError(f"--crop-size {args.crop_size}: this generator takes multiples of {multiple}")
    resize_long = args.resize_long if any(args.resize_long) else None
    if augment == "crop":
        transform = train_transform(args.crop_size, resize_long, brightness=args.brightness)
    else:
        transform = area_transform(args.crop_size, augment == "strong")
    return make_loader(dataset.with_transform(transform, masks=False), batch_size, args.workers,
                       seed=args.seed, drop_last=True)


def cam_settings(args: argparse.Namespace) -> dict[str, object]:
    """The arguments of `write_cams` that the command line asks for."""
    return {"scales": args.scales, "flip": args.flip, "fmt": args.cam_format, "precision": args.test_precision}


def open_dataset(args: argparse.Namespace, split: str | None = None) -> TagDataset:
    """The data that the command line names, of --split or another split, every file checked."""
    memory = args.runs / args.dataset / "checked.json"
    return build_dataset(args.dataset, args.data_root, split or args.split, skip_bad=args.skip_bad,
                         crowds=args.crowds, checked=Checked(memory, args.max_pixels))


def open_scored(args: argparse.Namespace, dataset: TagDataset) -> TagDataset:
    """The data set of --score-split, or `dataset` where that is the split at work."""
    if args.score_split in (None, args.split):
        return dataset
    scored = open_dataset(args, args.score_split)
    if outside := set(scored.names) - set(dataset.names):
        raise InputError(f"--score-split {args.score_split}: {min(outside)} is not in --split {args.split}, "
                         f"nor are {len(outside) - 1} other images")
    return scored


def start_run(args: argparse.Namespace, dataset: TagDataset | None, **inputs: Path | str | None) -> Run:
    """This run's folder, once all else has been checked; `inputs`, by setting, may name what it reads.

    InputError where --out is of another run, or is, holds or lies in what is read.
    """
    read = {name: Path(path) for name, path in inputs.items() if path is not None and Path(path).exists()}
    refuse_overlap(args.out, args.data_root, dataset.folders() if dataset else (), read)
    marks = fingerprint_inputs(read)
    if dataset:
        marks["data_root"] = f"the data in {args.data_root}", dataset.fingerprint()
    return Run(args.out, vars(args), args.resume, args.overwrite, marks)


def start_weights(args: argparse.Namespace) -> str | Path:
    """--weights, where `generator` stands for train_prompt's."""
    generator = stage_folder(args.runs, args.dataset, "train_prompt") / "generator.pt"
    return generator if args.weights == "generator" else args.weights


def stage_folder(runs: Path, dataset: str, stage: str) -> Path:
    """RUNS/DATASET/STAGE, where a stage leaves its results and the next one looks for them."""
    return Path(runs) / dataset / stage
