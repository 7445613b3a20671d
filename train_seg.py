"""Stage 4: train a segmenter on pseudo masks and predict a split, or use a trained one on your own images."""
import argparse
import math
import statistics
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from clipwsss.datasets import Batch, TagDataset
from clipwsss.datasets.base import contradiction_note
from clipwsss.datasets.coco import pycocotools_mask
from clipwsss.datasets.corrections import find_corrections
from clipwsss.datasets.exports import write_submission
from clipwsss.datasets.instances import read_instances, write_coco, write_yolo
from clipwsss.datasets.loaders import make_loader, size_loader
from clipwsss.datasets.mmseg_transform import mmseg_transform
from clipwsss.datasets.transforms import train_transform
from clipwsss.distributed import rank
from clipwsss.errors import InputError, run_script
from clipwsss.flags import Ascending, file_to_write, real, whole
from clipwsss.networks.resnet import RESNETS
from clipwsss.options import (COMMAND_LINE, drops_rest, first_command, open_dataset, parse,
                              say_absent_classes, say_stage, script_parser, start_run, start_weights,
                              training_flags, training_settings)
from clipwsss.refine.crf_flags import crf_flags
from clipwsss.report.page import write_report
from clipwsss.report.quality import QUALITY_FILE, read_quality, write_quality
from clipwsss.report.scoring import print_label_miou
from clipwsss.run import Run, notes_of
from clipwsss.segment.photos import (FORMATS, Photos, finished_photos, image_files, photos_at_once,
                                     refuse_taken_names)
from clipwsss.segment.predict import CRF_KERNELS, FUSIONS, predict_images, reduced_images, write_label_maps
from clipwsss.segment.segmenter import (SEGMENTERS, TEST_SETTINGS, Segmenter, build_segmenter, export_network,
                                        save_segmenter)
from clipwsss.training import (PRECISIONS, compile_networks, fit, pick_device, refuse_lone_values,
                               seed_everything)

PIPELINES = ("deeplab", "mmsegmentation")
PASS_STEPS = 200  # steps of an epoch of --iterations, at least: a checkpoint is written after each epoch


def get_parser() -> argparse.ArgumentParser:
    """The flags; presets/ has their values for each data set and network."""
    parser = script_parser(__doc__, "python train_seg.py --dataset voc12 --data-root VOCdevkit/VOC2012",
                           ("network", "weights", "masks", "iterations", "predict_split", "checkpoint",
                            "predict"))
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("network").add_argument
    add("--network", choices=SEGMENTERS, default="deeplabv2",
        help="network of the segmenter; mask2former needs the optional package transformers")
    add("--weights", default="imagenet",
        help="initial weights: imagenet, none, generator (of train_prompt.py, else train_cam.py), "
        "auto (that, else imagenet), a segmenter.pt, a file of torchvision or deeplab-pytorch; for "
        "mask2former none, a segmenter.pt, or a transformers model")
    add("--backbone", choices=RESNETS, default="resnet101", help="ResNet of DeepLab")
    add("--output-stride", type=whole(1, 64), default=8,
        help="ratio of the image size to the size of DeepLab's feature maps")
    add("--rates", type=whole(1, 255), nargs="+",
        help="dilation rates of DeepLab's ASPP (default: the published rates)")
    add("--frozen-bn", action=switch, default=True,
        help="keep the statistics and weights of the batch norm in DeepLab's backbone as they were loaded")
    add("--multi-scale", action=switch, default=None,
        help="train DeepLab by the sum of the losses at scales 1, 0.75 and 0.5 and the loss of the maximum "
        "of their logits (default: for deeplabv2 only)")
    add = parser.add_argument_group("training data and loss").add_argument
    add("--masks", type=Path,
        help="folder of the training masks, or `truth` for the true masks of the data set (default: the "
        "masks of make_pseudo.py)")
    add("--corrections", type=Path, metavar="DIR",
        help="folder of corrected label maps NAME.png, which win over those of --masks")
    add("--iterations", type=whole(1), default=20000, metavar="N",
        help="number of optimiser steps, unless --epochs is given")
    add("--accumulate", type=whole(1, 65536), default=2,
        help="number of batches whose gradients are averaged in one optimiser step")
    add("--scales", type=real(0.1, 8), nargs="+", default=(0.5, 0.75, 1.0, 1.25, 1.5), action=Ascending,
        help="training scales: one is drawn for each image; two values are the ends of a range")
    add("--stop-at", type=whole(0), default=0, metavar="N",
        help="end the training after N steps, while the learning rate falls as for all of --iterations; 0: "
        "train to the end")
    add("--pipeline", choices=PIPELINES, default="deeplab",
        help="training images; deeplab: scaled and cropped; mmsegmentation: the short side becomes "
        "--crop-size times the scale, with photometric distortion, and crops of more than 75 %% of one label "
        "are avoided")
    add("--balanced", action=switch, default=False,
        help="average the cross entropy over foreground and background pixels separately, and weight each "
        "by 0.5")
    add("--head-ratio", type=real(0, 1e4), default=10.0,
        help="learning rate of the new layers divided by that of the backbone (twice this for the biases of "
        "DeepLabV2's ASPP)")
    prediction_flags(parser)
    training_flags(parser)
    return parser


def prediction_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of prediction, of a split and of photographs, and of files in the formats of others."""
    add = parser.add_argument_group("prediction").add_argument
    switch = argparse.BooleanOptionalAction
    add("--predict-split", default="val", help="split to predict and score; an empty string predicts none")
    add("--checkpoint", type=Path,
        help="use this trained segmenter, and its test settings, instead of training one")
    add("--crf", action=switch, default=True, help="refine predictions by a dense CRF")
    add("--test-scales", type=real(0.1, 8), nargs="+", default=(1.0, 0.75, 0.5),
        help="scales at which images are predicted")
    add("--test-fusion", choices=FUSIONS, default="max",
        help="how predictions at several scales are combined: mean of their probabilities, or maximum of "
        "their logits at the size of the first scale's logits, as in the published tests of DeepLabV2")
    add("--test-flip", action=switch, default=False,
        help="average predictions with those of the mirrored images")
    add("--max-side", type=whole(0), metavar="PIXELS",
        help="images with a longer side are reduced to it before they are predicted, and the result is "
        "enlarged to their size; 0: no limit (default: for --predict the median longer side of the images "
        "that the segmenter was trained on, for --predict-split no limit)")
    add("--short-side", type=whole(0), default=0, metavar="PIXELS",
        help="the network sees images that are resized to this short side, with a long side of at most 4 "
        "times as much; 0: as they are")
    add("--test-batch-size", type=whole(1, 65536), default=1,
        help="largest number of images, all of the same size, that are predicted together; for --predict the "
        "default is up to 8, as their size allows")
    add("--test-precision", choices=PRECISIONS, default="fp32",
        help="number format in inference; auto takes bf16 where the device supports it natively")
    crf_flags(parser, *CRF_KERNELS)
    add = parser.add_argument_group("other outputs").add_argument
    add("--predict", type=Path, nargs="+", metavar="PATH",
        help="train nothing: segment these images and folders of images with the segmenter of --checkpoint, "
        "or of OUT, and write results to the folder `predicted` beside it, in subfolders as the images are")
    add("--predict-format", choices=FORMATS, nargs="+", default=["png"], metavar="FORMAT",
        help="what --predict writes: png (label maps NAME.png and overlays), coco (instances.json), yolo "
        "(labels/NAME.txt and data.yaml), probabilities (NAME.npz); label maps are written in any case")
    add("--submit", type=file_to_write(".tgz", ".tar.gz", ".json"), metavar="FILE",
        help="write the predictions of the split in the format of the VOC server (.tgz) or as COCO results "
        "(.json)")
    add("--export", type=file_to_write(".pt2", ".onnx"), metavar="FILE",
        help="train nothing: write the segmenter of --checkpoint, or of OUT, as a torch.export program "
        "(.pt2) or as ONNX (.onnx)")


def masks_folder(args: argparse.Namespace) -> Path:
    """The folder of training masks, or `truth` for the true masks."""
    return args.masks or args.runs / args.dataset / "make_pseudo" / "masks"


def training_data(args: argparse.Namespace) -> TagDataset:
    """The images of --split with the masks to learn from.

    InputError: images or masks are missing or bad, or --masks truth for a split without masks.
    """
    dataset = open_dataset(args)
    masks = masks_folder(args)
    if args.masks is None and not masks.is_dir():
        raise InputError(f"{masks}: no such folder; {first_command(args, 'make_pseudo')}")
    if str(masks) != "truth":
        dataset = dataset.with_masks(masks, args.skip_bad, find_corrections(args.corrections, dataset))
        for note in contradiction_note(dataset, masks):
            print(note, file=sys.stderr)
    elif not dataset.has_masks:
        raise InputError(f"--masks truth: {args.data_root} has no masks for --split {args.split}")
    print(f"{args.dataset} {args.split}: {len(dataset)} images; masks: {masks}")
    say_absent_classes(args, dataset)
    without = len(dataset) - sum(dataset.masked)
    if without:
        print(f"note: {without} of {len(dataset)} images have no mask and teach nothing: all their pixels "
              "are 255")
    if args.pipeline == "mmsegmentation":
        return dataset.with_transform(mmseg_transform(args.crop_size, tuple(args.scales)))
    return dataset.with_transform(
        train_transform(args.crop_size, None, tuple(args.scales), brightness=args.brightness, deeplab=True))


def initial_segmenter(args: argparse.Namespace, classes: Sequence[str]) -> tuple[nn.Module, dict]:
    """(network, design) that training starts from."""
    seed_everything(args.seed)
    design = {"network": args.network, "backbone": args.backbone, "output_stride": args.output_stride,
              "rates": args.rates, "multi_scale": args.multi_scale, "frozen_bn": args.frozen_bn}
    weights = start_weights(args)
    if args.weights in ("generator", "auto"):
        say_stage(weights)
    return build_segmenter(design, len(classes) + 1, weights, classes)


def training_loader(args: argparse.Namespace, dataset: TagDataset, network: nn.Module) -> DataLoader:
    """The batches of an epoch of training; InputError where the network cannot train on one of them."""
    repeats = 1
    if args.epochs is None:
        # An epoch takes few images several times, so that its checkpoint costs little of the time.
        repeats = max(1, PASS_STEPS * args.accumulate * args.batch_size // len(dataset))
    drop_last = repeats > 1 or drops_rest(args, len(dataset), args.batch_size)
    loader = make_loader(ConcatDataset([dataset] * repeats), args.batch_size, args.workers, seed=args.seed,
                         drop_last=drop_last)
    if args.network != "mask2former":  # which has no batch norm
        refuse_lone_values(network, "training_logits", loader, args.crop_size, args.sync_bn)
    return loader


def train(args: argparse.Namespace, run: Run, network: nn.Module, loader: DataLoader) -> None:
    """Train the network on the images and masks of a loader."""
    if args.compile:
        compile_networks(network)
    steps_per_epoch = math.ceil(len(loader) / args.accumulate)
    whole_schedule = args.iterations if args.epochs is None else args.epochs * steps_per_epoch
    steps = min(whole_schedule, args.stop_at or whole_schedule)
    epochs = math.ceil(steps / steps_per_epoch)  # the last one may end early
    print(f"{args.network}: {steps} steps of {args.accumulate} x {args.batch_size} images; writing {run.out}")

    def loss(batch: Batch) -> dict[str, tuple]:
        crops = batch.images.contiguous(memory_format=torch.channels_last)
        return network.loss_terms(crops, batch.masks, args.balanced)

    fit(run, loader, loss, {"network": network},
        network.parameter_groups(args.lr, args.weight_decay, args.head_ratio),
        training_settings(args, "train_seg", epochs=epochs, steps=steps, schedule_steps=whole_schedule))
    network.eval()


def predict(args: argparse.Namespace, network: nn.Module, dataset: TagDataset, folder: Path,
            palette: NDArray, done: Collection[str] = (), overlay_names: Sequence[str] = (),
            probabilities: bool = False) -> None:
    """Write the label maps of a data set's images but those in `done`.

    With names of the labels also overlays; with `probabilities` also these.
    """
    shown = reduced_images(dataset, args.max_side)
    loader = size_loader(shown, args.test_batch_size, args.workers, done)
    predictions = predict_images(network, loader, args.test_scales, args.test_flip, args.test_fusion,
                                 args.test_precision, args.short_side)
    sizes = dict(zip(dataset.names, dataset.sizes))
    kernels = (args.crf_gaussian, args.crf_bilateral) if args.crf else None
    write_label_maps(predictions, folder, palette, kernels, max(1, args.workers), overlay_names, sizes,
                     probabilities)


def take_test_settings(args: argparse.Namespace, segmenter: Segmenter, names: Sequence[str]) -> None:
    """Set those of these settings that were not given on the command line to the segmenter's own."""
    for name in names:
        if args.set_by.get(name) != COMMAND_LINE:
            setattr(args, name, segmenter.test[name])
            args.set_by[name] = "the segmenter's file"


def usual_side(dataset: TagDataset) -> int:
    """The median of the longer sides of a data set's images, in pixels."""
    return int(statistics.median_high(max(size) for size in dataset.sizes))


def predict_photos(args: argparse.Namespace, segmenter: Segmenter) -> None:
    """--predict: write what --predict-format asks for of the photographs that it names.

    Results are written beside --checkpoint, unless --out names another folder. InputError: images that are
    missing or bad, or results that exist already.
    """
    has_own_folder = args.checkpoint is None or "out" in args.set_by
    folder = (args.out if has_own_folder else args.checkpoint.parent) / "predicted"
    files = image_files(args.predict, folder)
    refuse_taken_names(files, folder, args.predict_format, args.overwrite or args.resume)
    photos = Photos(files, args.skip_bad, args.max_pixels)
    for problem in photos.skipped:
        print(f"skipped: {problem}", file=sys.stderr)
    done = finished_photos(files, folder, args.predict_format) if args.resume else set()
    take_test_settings(args, segmenter, TEST_SETTINGS)
    if args.set_by.get("test_batch_size") != COMMAND_LINE:
        args.test_batch_size = photos_at_once(reduced_images(photos, args.max_side).sizes)
    larger = sum(max(size) > args.max_side for size in photos.sizes) if args.max_side else 0
    if larger:
        print(f"{larger} of {len(photos)} photographs are larger than --max-side {args.max_side} and are "
              "reduced to it before they are predicted")

    names = ("background", *segmenter.classes)
    predict(args, segmenter.network, photos, folder, segmenter.palette, done,
            names if "png" in args.predict_format else (), "probabilities" in args.predict_format)
    if "coco" in args.predict_format or "yolo" in args.predict_format:
        found = read_instances(folder, photos.names, args.workers)
        if "coco" in args.predict_format:
            file_names = {name: f"{name}{files[name].suffix}" for name in photos.names}
            write_coco(found, file_names, segmenter.classes, folder / "instances.json")
        if "yolo" in args.predict_format:
            write_yolo(found, segmenter.classes, folder)
    print(f"{len(photos)} photographs: {', '.join(args.predict_format)} in {folder}")


def use_trained(args: argparse.Namespace) -> None:
    """--predict and --export: use the segmenter of --checkpoint, or of the run in --out.

    InputError: no such segmenter, or --export of a mask2former; and those of `predict_photos`.
    """
    path = args.checkpoint or args.out / "segmenter.pt"
    segmenter = Segmenter(path, args.device)
    if args.predict:
        predict_photos(args, segmenter)
    if args.export and rank() == 0:
        if segmenter.design["network"] == "mask2former":
            raise InputError(f"--export: {path} is a mask2former, and only DeepLab can be exported; "
                             "transformers can save its model")
        if segmenter.test["short_side"]:
            print(f"{args.export}: give it images with a short side of {segmenter.test['short_side']} pixels")
        export_network(segmenter.network, args.export)
        print(f"exported {args.export} ({args.export.stat().st_size / 1e6:.1f} MB)")


def check_arguments(args: argparse.Namespace) -> None:
    """InputError on flags that do not go together, before anything is read."""
    if args.compile and args.network == "mask2former":
        raise InputError("--compile: mask2former cannot be compiled; leave --compile out")
    if args.pipeline == "mmsegmentation" and len(args.scales) != 2:
        raise InputError("--scales: --pipeline mmsegmentation takes two, the ends of a range")
    if args.pipeline == "mmsegmentation" and args.brightness:
        raise InputError("--brightness: --pipeline mmsegmentation has a photometric distortion of its own")
    if args.checkpoint and not args.predict_split:
        raise InputError("--checkpoint: --predict-split names no split to predict; name one")
    if args.submit and not args.predict_split:
        raise InputError("--submit: --predict-split names no split whose predictions are packed; name one")
    if args.submit and args.submit.suffix == ".json":
        pycocotools_mask()  # COCO's results need this package; better missed now than after the training


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "train_seg")
    device = pick_device(args.device)
    if args.predict or args.export:
        use_trained(args)
        return 0
    check_arguments(args)

    # Data: images to learn from, and images to predict.
    learned = None if args.checkpoint else training_data(args)
    unseen = open_dataset(args, args.predict_split) if args.predict_split else None

    # Segmenter: a trained one, or one to be trained.
    if args.checkpoint:
        segmenter = Segmenter(args.checkpoint, args.device)
        take_test_settings(args, segmenter, [name for name in TEST_SETTINGS if name != "max_side"])
        network = segmenter.network
        classes = segmenter.classes
        palette = segmenter.palette
    else:
        not_asked_for = args.set_by.get("frozen_bn") != COMMAND_LINE and args.network != "mask2former"
        if args.weights == "none" and args.frozen_bn and not_asked_for:
            args.frozen_bn = False  # random weights are not worth freezing
            args.set_by["frozen_bn"] = "--weights none"
            print("--weights none: the batch norm trains too")
        network, design = initial_segmenter(args, learned.classes)
        classes = learned.classes
        palette = learned.palette
    if unseen and list(unseen.classes) != list(classes):
        learned_from = f"--checkpoint {args.checkpoint}" if args.checkpoint else f"--split {args.split}"
        raise InputError(f"{learned_from}: the classes are {', '.join(classes)}; those of --predict-split "
                         f"{args.predict_split} are {', '.join(unseen.classes)}")
    network.to(device, memory_format=torch.channels_last)

    # Training.
    if learned:
        loader = training_loader(args, learned, network)
    run = start_run(args, learned or unseen, masks=masks_folder(args) if learned else None,
                    corrections=args.corrections,
                    checkpoint=args.checkpoint, weights=start_weights(args))
    if learned:
        train(args, run, network, loader)
        test = {name: getattr(args, name) for name in TEST_SETTINGS}
        if args.max_side is None:
            test["max_side"] = usual_side(learned)
        save_segmenter(network, design, classes, palette, run.out / "segmenter.pt", test)

    # Prediction of a split.
    figures = {}
    if unseen:
        folder = run.out / "predictions"
        done = set()
        if args.resume:
            done = {name for name in unseen.names if (folder / f"{name}.png").exists()}
        predict(args, network, unseen, folder, palette, done)
        scores = print_label_miou(unseen, folder, f"{args.predict_split} predictions", args.workers)
        figures = {"split": args.predict_split, **scores}
        found = read_quality(unseen, folder, learned, args.workers)
        write_quality(found, run.out / QUALITY_FILE, "training mask")
        if args.submit and rank() == 0:
            write_submission(unseen, folder, args.submit)
            print(f"{args.submit}: {len(unseen)} label maps, checked")
    notes = []
    if learned and str(masks_folder(args)) != "truth":
        notes = notes_of(masks_folder(args).parent)
    run.result(**figures, notes=notes)
    write_report(run.out, "train_seg", unseen or learned, masks=run.out / "predictions" if unseen else None)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
