"""Stage 1: train a multi-label classifier on image tags and write its class activation maps (CAMs)."""
import argparse
import signal

if __name__ == "__main__":  # until `run_script`, Ctrl-C ends this without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
import torch.nn.functional as F

from clipwsss.cams.base import GeneratorSettings, MapGenerator
from clipwsss.cams.generator import KIND_OF_BACKBONE, build_generator, load_generator, save_generator
from clipwsss.cams.maps import rescale, write_cams
from clipwsss.datasets import TagDataset
from clipwsss.datasets.loaders import size_loader
from clipwsss.distributed import gather
from clipwsss.errors import run_script
from clipwsss.flags import whole
from clipwsss.networks.batch_norm import fuse_batch_norm
from clipwsss.generator_options import cam_settings, crop_loader, generator_flags, generator_settings
from clipwsss.options import (open_dataset, open_scored, parse, script_parser, start_run, training_flags,
                              training_settings)
from clipwsss.report.metrics import average_precision
from clipwsss.report.page import StageOutputs, write_report
from clipwsss.report.scoring import print_cam_curve
from clipwsss.training import compile_networks, fit, pick_device, seed_everything


def get_parser() -> argparse.ArgumentParser:
    """Flags; defaults are IRN's for VOC (POLE and CLIMS start from that baseline)."""
    parser = script_parser(__doc__, "python train_cam.py --dataset voc12 --data-root VOCdevkit/VOC2012",
                           ("backbone", "weights", "init", "cam_format"))
    add = parser.add_argument_group("classifier").add_argument
    add("--backbone", choices=tuple(KIND_OF_BACKBONE), default="resnet50", help="classifier network")
    add("--weights", default="imagenet", help="its start: imagenet, none, a file of published "
        "weights; auto: imagenet where it is or can be had, else none")
    add("--init", help="start from (or, with --epochs 0, only make CAMs of) this generator file")
    add("--output-stride", type=whole(1, 64), default=16, help="of a ResNet: image size over map size")
    add("--val-split", default="val", help="split for the classifier's mAP; '' for none")
    training_flags(parser)
    generator_flags(parser)
    return parser


def weights_at_hand(classes: list[str], settings: GeneratorSettings) -> str:
    """imagenet where its weights are on disk or can be downloaded, else none, which is said."""
    try:
        build_generator(classes, settings._replace(weights="imagenet"))
    except FileNotFoundError as error:
        print(f"--weights auto: none, so that maps will be rough: {error}")
        return "none"
    return "imagenet"


@torch.inference_mode()
def classifier_map(generator: MapGenerator, dataset: TagDataset, device: torch.device, batch_size: int,
                   workers: int) -> float:
    """Mean average precision in percent of the classifier's scores over a split, images at their own size."""
    generator = fuse_batch_norm(generator)
    scores, labels = [], []
    for batch in size_loader(dataset, batch_size, workers):
        images = rescale(batch.images.to(device), multiple=generator.input_multiple)
        scores.append(next(iter(generator.classify(images).values())).cpu())
        labels.append(batch.labels)
    parts = gather((scores, labels))
    scores, labels = (torch.cat([tensor for part in column for tensor in part]) for column in zip(*parts))
    return average_precision(scores.numpy(), labels.numpy())


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "train_cam")
    device = pick_device(args.device)
    dataset = open_dataset(args)
    if args.val_split:  # checked before any training
        val = open_dataset(args, args.val_split)
    scored, settings = open_scored(args, dataset), generator_settings(args)
    if args.weights == "auto":
        args.weights = weights_at_hand(dataset.classes, settings)
        settings = settings._replace(weights=args.weights)
    seed_everything(args.seed)
    if args.init:
        generator = load_generator(args.init, dataset.classes, settings)
    else:
        generator = build_generator(dataset.classes, settings)
    generator.to(device, memory_format=torch.channels_last)
    if args.compile:
        compile_networks(generator)
    loader = crop_loader(args, dataset, args.batch_size, generator.input_multiple)
    run = start_run(args, dataset, init=args.init, weights=args.weights)
    print(f"{args.dataset} {args.split}: {len(dataset)} images, {len(dataset.classes)} classes; "
          f"writing {run.out}"
          + "; --weights none: batch norm trains too" * (args.weights == "none" and not args.frozen_bn))

    def loss(batch):
        logits = generator.classify(batch.images.contiguous(memory_format=torch.channels_last))
        return {name: (1.0, F.multilabel_soft_margin_loss(value, batch.labels, reduction="sum"), len(value))
                for name, value in logits.items()}  # POLE eq. 1 for each

    fit(run, loader, loss, {"generator": generator},
        generator.parameter_groups(args.lr, args.head_ratio), training_settings(args, "train_cam"))
    save_generator(generator, run.path("generator.pt"))
    figures = {}
    if args.val_split:
        figures["mAP"] = classifier_map(generator, val, device, args.cam_batch_size, args.workers)
        print(f"classifier mAP on {args.val_split}: {figures['mAP']:.2f}")

    write_cams(generator, dataset, run.path("cams"), cam_settings(args), args.resume)
    run.result(**figures, **print_cam_curve(scored, run.path("cams")))
    write_report(run.out, "train_cam", StageOutputs(scored, cams=run.path("cams")))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
