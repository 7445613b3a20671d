"""The command line that train_cam.py and train_prompt.py share: the CAM generator, its crops and its CAMs."""
import argparse

from torch.utils.data import DataLoader

from .cams.cam_files import FORMATS
from .cams.generator import GENERATORS
from .datasets import TagDataset
from .datasets.loaders import make_loader
from .datasets.transforms import AUGMENTS, area_transform, train_transform
from .errors import InputError
from .flags import Ascending, real, whole
from .training import PRECISIONS


def generator_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the CAM generator, of its training crops and of its CAM files."""
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("generator").add_argument
    add("--generator", choices=tuple(GENERATORS), default="resnet",
        help="kind of network that makes the CAMs")
    add("--freeze-stages", type=whole(0, 5), default=0,
        help="resnet: number of stages that do not learn; 1: the stem (CLIMS), 3: also layer1, layer2 (IRN)")
    add("--frozen-bn", action=switch, default=False,
        help="resnet: keep the statistics of batch norm in training (IRN)")
    add("--pooling", choices=("avg", "max"), default="max",
        help="weaktr: pooling of the attention features over the tokens")
    add("--reduction", type=whole(1, 16), default=8,
        help="weaktr: number of attention heads over the inner width of the attention fusion")
    add("--drop-path", type=real(0, 0.9), default=0.1,
        help="weaktr: probability of leaving out the last block in training")
    add("--head-ratio", type=real(0, 1e4), default=10.0,
        help="learning rate of the new layers over that of the backbone")
    add("--resize-long", type=whole(0, 16384), nargs=2, default=[320, 640], metavar=("LO", "HI"),
        action=Ascending, help="range of an image's long side before cropping; 0 0 does not resize")
    add("--augment", choices=AUGMENTS, default="crop",
        help="training crops: crop resizes as --resize-long says and crops; area takes a part of random size "
        "and shape; strong adds RandAugment and erasing (DeiT)")
    add = parser.add_argument_group("CAMs").add_argument
    add("--score-split", help="split whose CAMs are scored against true masks (default: --split)")
    add("--scales", type=real(0.1, 8), nargs="+", default=[1.0],
        help="image scales that CAMs are averaged over")
    add("--flip", action=switch, default=True, help="also average over the mirror image")
    add("--cam-batch-size", type=whole(1, 65536), default=4,
        help="images of one size in a forward pass when CAMs are made")
    add("--test-precision", choices=PRECISIONS, default="auto",
        help="precision of inference; auto takes bf16 where the device supports it natively")
    add("--cam-format", choices=tuple(FORMATS), default="npz",
        help="npz: maps at a quarter of the image's size; full: also at full size; irn: the .npy files of "
        "IRN; psa: those of PSA and WeakTr")


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
    """A loader of the training crops that the command line asks for; `augment` replaces --augment.

    InputError where --crop-size is not divisible by `multiple`.
    """
    augment = augment or args.augment
    if args.crop_size % multiple:
        raise InputError(f"--crop-size {args.crop_size}: this generator takes multiples of {multiple}")
    if augment == "crop":
        resize_long = args.resize_long if any(args.resize_long) else None
        transform = train_transform(args.crop_size, resize_long, brightness=args.brightness)
    else:
        transform = area_transform(args.crop_size, augment == "strong")
    return make_loader(dataset.with_transform(transform, masks=False), batch_size, args.workers,
                       seed=args.seed, drop_last=True)
