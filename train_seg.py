"""Stage 4: train a segmenter on pseudo masks, write its predictions; segment images of your own with it."""
import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from clipwsss.datasets import TagDataset, build_dataset
from clipwsss.datasets.base import files_of, read_image
from clipwsss.datasets.folder import SUFFIXES
from clipwsss.datasets.loaders import make_loader, size_loader
from clipwsss.datasets.transforms import eval_transform, train_transform
from clipwsss.errors import InputError, run_script
from clipwsss.networks.resnet import BACKBONES
from clipwsss.options import parse, script_parser, stage_folder, training_flags, training_of
from clipwsss.report.scoring import print_label_miou
from clipwsss.segment.export import export_network
from clipwsss.segment.predict import Predictor
from clipwsss.segment.segmenter import NETWORKS, build_segmenter, load_segmenter, save_segmenter
from clipwsss.segment.submission import pack
from clipwsss.training import Run, fit, pick_device, seed_everything

PASS_STEPS = 200


def get_parser() -> argparse.ArgumentParser:
    """Flags; defaults are deeplab-pytorch's for VOC 2012 (DeepLabV2, 20,000 iterations of 2 x 5 images)."""
    parser = script_parser(__doc__, "python train_seg.py --dataset voc12 --data-root VOCdevkit/VOC2012")
    add = parser.add_argument_group("network and masks").add_argument
    add("--masks", type=Path, help="folder of training masks (default: make_pseudo's); truth: the data's own")
    add("--network", choices=NETWORKS, default="deeplabv2", help="mask2former needs the package transformers")
    add("--backbone", choices=BACKBONES, default="resnet101", help="of DeepLab")
    add("--weights", default="imagenet", help="start: imagenet, none, generator (train_prompt's), a file of "
        "torchvision or deeplab-pytorch weights; of mask2former a transformers model")
    add("--output-stride", type=int, default=8, help="image size over map size")
    add("--rates", type=int, nargs="+", help="dilations of the ASPP (default: as published)")
    add("--frozen-bn", action=argparse.BooleanOptionalAction, default=True, help="batch norm does not learn")
    add("--multi-scale", action=argparse.BooleanOptionalAction, default=None,
        help="losses at 1, 0.75, 0.5 and their maximum (default: deeplabv2 only)")
    add("--balanced", action="store_true", help="cross entropy: half foreground, half background")
    add = parser.add_argument_group("prediction").add_argument
    add("--predict-split", default="val", help="split to write predictions for; '' for none")
    add("--checkpoint", type=Path, help="use this trained segmenter, train nothing")
    add("--predict", type=Path, nargs="+", metavar="PATH",
        help="segment these images or folders with OUT's (or --checkpoint's) segmenter, with overlays")
    add("--test-scales", type=float, nargs="+", default=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        help="scales whose probabilities are averaged in predictions")
    add("--test-flip", action=argparse.BooleanOptionalAction, default=True, help="add the mirror images")
    add("--test-batch-size", type=int, default=1, help="images of one size per forward pass in predictions")
    add("--crf", action=argparse.BooleanOptionalAction, default=True, help="dense CRF after prediction")
    add("--submit", type=Path, metavar="FILE", help="pack the split's predictions for the VOC server (.tgz)")
    add("--export", type=Path, metavar="FILE", help="write the segmenter as .pt2 (torch.export) or .onnx")
    training_flags(parser, batch_size=5, lr=2.5e-4, optimizer="sgd", schedule="poly", weight_decay=5e-4,
                   momentum=0.9)
    add = parser.add_argument_group("training").add_argument
    add("--iterations", type=int, default=20000, help="optimiser steps, where --epochs is not given")
    add("--accumulate", type=int, default=2, help="batches whose gradients make one step")
    add("--head-ratio", type=float, default=10.0,
        help="learning rate of new layers over the backbone's (biases of the V2 ASPP: twice that)")
    add("--crop-size", type=int, default=321, help="side of the training crop")
    add("--scales", type=float, nargs=2, default=(0.5, 1.5), metavar=("LO", "HI"), help="training scales")
    add("--brightness", type=float, default=0.0, help="random gain of 1 +- this in training")
    return parser


def train(args: argparse.Namespace, device: torch.device) -> Run:
    """Train on the masks and save segmenter.pt; the run."""
    dataset = build_dataset(args.dataset, args.data_root, args.split, skip_bad=args.skip_bad)
    masks = args.masks or stage_folder(args.runs, args.dataset, "make_pseudo") / "masks"
    if str(masks) != "truth":
        dataset = dataset.with_masks(masks, args.skip_bad)
    elif not dataset.has_masks:
        raise InputError(f"--masks truth: {args.data_root} has no masks for {args.split}")
    generator = stage_folder(args.runs, args.dataset, "train_prompt") / "generator.pt"
    run = Run(args.out, vars(args), args.resume, args.overwrite)
    seed_everything(args.seed)
    config = dict(network=args.network, backbone=args.backbone, output_stride=args.output_stride,
                  rates=args.rates, classes=list(dataset.classes))
    network, config = build_segmenter(config, generator if args.weights == "generator" else args.weights,
                                      args.frozen_bn, args.multi_scale)
    network.to(device, memory_format=torch.channels_last)
    data = dataset.with_transform(
        train_transform(args.crop_size, None, tuple(args.scales), brightness=args.brightness))
    if args.epochs is None:  # few images: repeat them, so that a pass and its checkpoint are worth it
        times = PASS_STEPS * args.accumulate * args.batch_size // len(dataset)
        data = torch.utils.data.ConcatDataset([data] * max(1, times))
    loader = make_loader(data, args.batch_size, args.workers, seed=args.seed, drop_last=True)
    per_epoch = -(-len(loader) // args.accumulate)
    steps = args.epochs * per_epoch if args.epochs is not None else args.iterations
    print(f"{args.dataset} {args.split}: {len(dataset)} images, masks of {masks}; {args.network}, {steps} "
          f"steps of {args.accumulate} x {args.batch_size}; writing {run.out}")

    def step(batch):
        images = batch.images.contiguous(memory_format=torch.channels_last)
        return {"loss": network.training_loss(images, batch.masks, args.balanced)}

    fit(run, loader, step, {"network": network},
        network.parameter_groups(args.lr, args.weight_decay, args.head_ratio),
        training_of(args, "train_seg", epochs=-(-steps // per_epoch), steps=steps))
    save_segmenter(network, config, dataset.palette, run.path("segmenter.pt"))
    return run


def predict_split(args: argparse.Namespace, dataset: TagDataset, predictor: Predictor) -> Path:
    """Write the predictions of a split's images, those that are there already kept when resuming."""
    folder = args.out / "predictions"
    done = {name for name in dataset.names if args.resume and (folder / f"{name}.png").exists()}
    plain = dataset.with_transform(eval_transform(), masks=False)
    loader = size_loader(plain, args.test_batch_size, args.workers, done)
    predictor.write(f"predict {args.predict_split}", len(dataset) - len(done),
                    (([folder / f"{name}.png" for name in batch.names], batch.images) for batch in loader))
    return folder


def own_images(paths: list[Path]) -> list[Path]:
    """The image files of --predict's files and folders; InputError names what is missing."""
    files = []
    for path in paths:
        inside = files_of(path, SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"--predict {path}: no image in this folder ({', '.join(SUFFIXES)})")
        files += inside
    for path in files:
        if not path.is_file():
            raise InputError(f"--predict {path}: no such file or folder")
    stem, count = Counter(path.stem for path in files).most_common(1)[0]
    if count > 1:
        raise InputError(f"--predict: several images are named {stem}, their results would overwrite each "
                         "other")
    return files


def predict_own(args: argparse.Namespace, classes: list[str], predictor: Predictor) -> None:
    """Segment a user's images into OUT/predicted: NAME.png (label map) and NAME_overlay.png."""
    files, folder, bad = own_images(args.predict), args.out / "predicted", []

    def batches() -> Iterator[tuple[list[Path], torch.Tensor]]:
        for file in files:
            try:
                image = read_image(file, oriented=True)
            except InputError as error:
                if not args.skip_bad:
                    raise
                bad.append(str(error))
                continue
            yield [folder / f"{file.stem}.png"], eval_transform()(image, None)[0][None]

    predictor.write("predict", len(files), batches(), ("background", *classes))
    for problem in bad:
        print(f"skipped: {problem}", file=sys.stderr)
    print(f"{len(files) - len(bad)} label maps and overlays in {folder}")


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "train_seg")
    device = pick_device(args.device)
    if args.checkpoint or args.predict or args.export:
        checkpoint, run = args.checkpoint or args.out / "segmenter.pt", None
    else:
        run = train(args, device)
        checkpoint = run.path("segmenter.pt")
    network, config, palette = load_segmenter(checkpoint)
    predictor = Predictor(network.to(device, memory_format=torch.channels_last), palette, args.test_scales,
                          args.test_flip, args.crf, max(1, args.workers))
    if args.predict:
        predict_own(args, config["classes"], predictor)
    if args.export:
        if config["network"] == "mask2former":
            raise InputError("--export: DeepLab only; save mask2former by transformers' own means")
        export_network(network, args.export)
    figures = {}
    if args.predict_split and not (args.predict or args.export):
        dataset = build_dataset(args.dataset, args.data_root, args.predict_split, skip_bad=args.skip_bad)
        if list(dataset.classes) != config["classes"]:
            raise InputError(f"{checkpoint}: made for other classes than {args.data_root} has")
        folder = predict_split(args, dataset, predictor)
        figures = print_label_miou(dataset, folder, f"{args.predict_split} predictions", args.workers)
        if args.submit:
            pack(dataset, folder, args.submit)
    if run:
        run.result(**figures)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
