"""Stage 1: train a multi-label classifier on image tags and write its class activation maps (CAMs)."""
import argparse
import sys

import torch
import torch.nn.functional as F

from clipwsss.cam import size_loader, write_cams
from clipwsss.datasets import TagDataset, build_dataset
from clipwsss.engine import (Run, fit, make_loader, make_optimizer, make_scheduler, pick_device,
                             seed_everything)
from clipwsss.errors import run_script
from clipwsss.generator import build_generator, load_generator, save_generator
from clipwsss.metrics import average_precision
from clipwsss.options import generator_flags, parse, script_parser
from clipwsss.resnet import BACKBONES
from clipwsss.scoring import print_cam_curve
from clipwsss.transforms import train_transform


def get_parser() -> argparse.ArgumentParser:
    """Flags; defaults are IRN's for VOC (POLE and CLIMS start from that baseline)."""
    parser = script_parser(__doc__, training=dict(batch_size=16, epochs=5, lr=0.1, optimizer="sgd",
                                                  schedule="poly", weight_decay=1e-4))
    add = parser.add_argument
    add("--backbone", choices=BACKBONES, default="resnet50", help="classifier network")
    add("--weights", default="imagenet", help="its start: imagenet, none, or a file of torchvision weights")
    add("--init", help="start from (or, with --epochs 0, only make CAMs of) this generator file")
    add("--output-stride", type=int, default=16, help="image size over map size")
    add("--val-split", default="val", help="split for the classifier's mAP; '' for none")
    generator_flags(parser, frozen_bn=True)
    return parser


@torch.inference_mode()
def classifier_map(generator: torch.nn.Module, dataset: TagDataset, device: torch.device, batch_size: int,
                   workers: int) -> float:
    """Mean average precision in percent of the classifier's scores over a split, images at their own size."""
    generator.eval()
    scores, labels = [], []
    for batch in size_loader(dataset, batch_size, workers):
        scores.append(generator(batch.images.to(device)).mean(dim=(2, 3)).cpu())
        labels.append(batch.labels)
    return average_precision(torch.cat(scores).numpy(), torch.cat(labels).numpy())


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "train_cam")
    device = pick_device(args.device)
    transform = train_transform(args.crop_size, args.resize_long if any(args.resize_long) else None,
                                brightness=args.brightness)
    dataset = build_dataset(args.dataset, args.data_root, args.split, skip_bad=args.skip_bad)
    if args.val_split:  # checked before any training
        val = build_dataset(args.dataset, args.data_root, args.val_split, skip_bad=args.skip_bad)
    run = Run(args.out, vars(args), args.resume, args.overwrite)
    print(f"{args.dataset} {args.split}: {len(dataset)} images, {len(dataset.classes)} classes; "
          f"writing {run.out}")

    seed_everything(args.seed)
    options = dict(freeze_stages=args.freeze_stages, frozen_bn=args.frozen_bn)
    if args.init:
        generator = load_generator(args.init, dataset.classes, args.backbone, args.output_stride, **options)
    else:
        generator = build_generator(args.backbone, dataset.classes, args.output_stride, args.weights,
                                    **options)
    generator.to(device, memory_format=torch.channels_last)
    loader = make_loader(dataset.with_transform(transform, masks=False), args.batch_size, args.workers,
                         seed=args.seed, drop_last=True)
    optimizer = make_optimizer(generator.parameter_groups(args.lr, args.head_ratio), args.optimizer, args.lr,
                               args.weight_decay, args.momentum)
    scheduler = make_scheduler(optimizer, args.schedule, args.epochs * len(loader), warmup=args.warmup)

    def step(batch):
        logits = generator(batch.images.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))
        return {"loss": F.multilabel_soft_margin_loss(logits, batch.labels)}  # POLE eq. 1

    fit(run, loader, step, {"generator": generator}, optimizer, scheduler, args.epochs, device, args.seed,
        args.clip_norm, label="train_cam", precision=args.precision)
    save_generator(generator, run.path("generator.pt"))
    if args.val_split:
        value = classifier_map(generator, val, device, args.cam_batch_size, args.workers)
        run.log(label="val", mAP=value)
        print(f"classifier mAP on {args.val_split}: {value:.2f}")

    write_cams(generator, dataset, run.path("cams"), device, args.scales, args.flip, args.cam_batch_size,
               args.workers, args.cam_format, args.resume)
    print_cam_curve(dataset, run)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
