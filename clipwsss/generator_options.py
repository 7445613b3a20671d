"""The command line that train_cam.py and train_prompt.py share: CAM generator, crops, CAMs, CLIP's maps."""
import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from torch.utils.data import DataLoader

from .cams.cam_files import FORMATS
from .cams.generator import GENERATORS
from .cams.maps import finished_cams
from .datasets import TagDataset
from .datasets.base import whole_image
from .datasets.loaders import make_loader, size_loader
from .datasets.transforms import AUGMENTS, area_transform, train_transform
from .errors import InputError
from .files import nfc, read_text
from .flags import Ascending, real, whole
from .options import drops_rest, open_dataset
from .training import PRECISIONS

# Flags of the generator, its training and its CAMs, which CLIP's own maps do without.
UNUSED_BY_CLIP = ("lr", "optimizer", "sync_bn", "keep_best", "best_images", "crop_size", "resize_long",
                  "brightness", "augment", "freeze_stages", "frozen_bn", "pooling", "reduction", "drop_path",
                  "head_ratio", "scales", "flip")


def generator_flags(parser: argparse.ArgumentParser, kinds: Sequence[str] = tuple(GENERATORS)) -> None:
    """The flags of the CAM generator, of its training crops and of its CAM files; kinds: of --generator."""
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("generator").add_argument
    add("--generator", choices=kinds, default="resnet",
        help="what makes the CAMs: a ResNet, WeakTr's vision transformer, or (in train_cam.py) CLIP itself")
    add("--freeze-stages", type=whole(0, 5), default=0,
        help="resnet: number of stages whose weights are not trained; 1 is the stem (CLIMS), 3 are the stem, "
        "layer1 and layer2 (IRN)")
    add("--frozen-bn", action=switch, default=False,
        help="resnet: batch norm keeps its stored statistics in training (IRN); else they follow the batch, "
        "in stages that are not trained too (CLIMS)")
    add("--pooling", choices=("avg", "max"), default="max",
        help="weaktr: how the attention fusion pools the attention's features over the tokens")
    add("--reduction", type=whole(1, 16), default=8,
        help="weaktr: number of attention heads divided by the hidden width of the attention fusion")
    add("--drop-path", type=real(0, 0.9), default=0.1,
        help="weaktr: probability that training skips the last block (stochastic depth); it falls linearly "
        "to 0 in the first block")
    add("--head-ratio", type=real(0, 1e4), default=10.0,
        help="learning rate of the new layers divided by that of the backbone")
    add("--resize-long", type=whole(0, 16384), nargs=2, default=[320, 640], metavar=("LO", "HI"),
        action=Ascending, help="--augment crop: range of the random length in pixels to which an image's "
        "long side is resized; 0 0 does not resize")
    add("--augment", choices=AUGMENTS, default="crop",
        help="training crops: crop is a square of the resized image (--resize-long, --brightness); area is a "
        "part of random area and shape; strong is area with RandAugment and random erasing (DeiT)")
    add("--keep-best", metavar="SPLIT",
        help="keep the epoch with the highest CAM mIoU on the true masks of this split, as WeakTr's and "
        "SemPLeS' releases do; without it the last epoch is kept and no mask is used")
    add("--best-images", type=Path, metavar="FILE",
        help="the images of --keep-best that are scored, one name a line; for COCO the releases have the "
        "file coco/train_1250_id.txt (default: all images of the split)")
    add = parser.add_argument_group("CAMs").add_argument
    add("--score-split", help="split whose CAMs are scored against true masks, a part of --split; without "
        "it, all of --split")
    add("--scales", type=real(0.1, 8), nargs="+", default=[1.0],
        help="scales of the image over which CAMs are averaged")
    add("--flip", action=switch, default=True, help="also average the CAMs of the mirror image")
    add("--cam-batch-size", type=whole(1, 65536), default=4,
        help="number of images in a forward pass when CAMs are made; these images have one size")
    add("--test-precision", choices=PRECISIONS, default="fp32",
        help="number format in inference; auto takes bf16 where the device supports it natively")
    add("--cam-format", choices=tuple(FORMATS), default="npz",
        help="format of CAM files; npz: .npz with maps at a quarter of the image's size; full: .npz with "
        "maps at full size too; irn: .npy as in IRN's code; psa: .npy as in PSA's and WeakTr's code")


def box_flag(add: Callable[..., argparse.Action]) -> None:
    """The flag of CLIP's own maps; add: the add_argument of its group."""
    add("--box", type=real(0, 0.99), default=0.4,
        help="CLIP's own maps of a ViT: a map is carried along the attention from the boxes around its "
        "bright parts, which exceed this share of its maximum (CLIP-ES)")


def open_validation(args: argparse.Namespace) -> TagDataset | None:
    """The images of --keep-best, None without the flag.

    InputError: a split without masks, or a file of --best-images that names no image of the split.
    """
    if not args.keep_best:
        if args.best_images:
            raise InputError("--best-images: these images are scored by --keep-best SPLIT; give both")
        return None
    validation = open_dataset(args, args.keep_best)
    if not validation.has_masks:
        raise InputError(f"--keep-best {args.keep_best}: this split has no masks to choose an epoch by")
    if args.best_images:
        return validation.only(listed_images(args.best_images, validation.names))
    return validation


def listed_images(path: Path, names: Sequence[str]) -> list[int]:
    """The numbers among `names` of the images that a file lists, one a line.

    COCO's image COCO_train2014_000000000009 may be listed as 000000000009, as in WeakTr's and SemPLeS' files.
    InputError: a line that is no such image, or an empty file.
    """
    numbers = {name.rpartition("2014_")[2]: index for index, name in enumerate(names)}
    numbers |= {name: index for index, name in enumerate(names)}
    listed = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        name = nfc(line.strip())
        if name and name not in numbers:
            raise InputError(f"{path}:{number}: no image of this split is called {name}")
        if name:
            listed.append(numbers[name])
    if not listed:
        raise InputError(f"{path}: it lists no image")
    return list(dict.fromkeys(listed))


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
                       seed=args.seed, drop_last=drops_rest(args, len(dataset), batch_size))


def cam_loader(args: argparse.Namespace, dataset: TagDataset, folder: Path) -> DataLoader:
    """Whole images in batches of one size; a resumed run leaves out those with a CAM file in `folder`."""
    finished = finished_cams(dataset, folder, args.cam_format) if args.resume else set()
    whole_images = dataset.with_transform(whole_image, masks=False)
    return size_loader(whole_images, args.cam_batch_size, args.workers, finished)
