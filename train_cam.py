"""Stage 1: train a multi-label classifier on image tags and write its class activation maps (CAMs)."""
import argparse
import sys

import torch

from clipwsss.cam import size_batches, write_cams
from clipwsss.cam_files import list_cams
from clipwsss.datasets import TagDataset, build_dataset, collate
from clipwsss.engine import Run, fit, make_loader, make_optimizer, make_scheduler, pick_device, seed_everything
from clipwsss.errors import run_script
from clipwsss.generator import build_generator, load_generator, save_generator
from clipwsss.losses import classification_loss
from clipwsss.metrics import average_precision
from clipwsss.options import parse, script_parser
from clipwsss.resnet import BACKBONES
from clipwsss.scoring import print_cam_curve
from clipwsss.transforms import train_transform


def get_parser() -> argparse.ArgumentParser:
    """Flags; defaults are IRN's for VOC (POLE and CLIMS start from that baseline)."""
    parser = script_parser(__doc__, training=dict(batch_size=16, epochs=5, lr=0.1, optimizer="sgd", schedule="poly",
                                                  weight_decay=1e-4))
    add = parser.add_argument
    add("--backbone", choices=BACKBONES, default="resnet50", help="classifier network")
    add("--weights", default="imagenet", help="its start: imagenet, none, or a file of torchvision weights")
    add("--init", help="start from (or, with --epochs 0, only make CAMs of) this generator file")
    add("--output-stride", type=int, default=16, help="image size over map size")
    add("--freeze-stages", type=int, default=1, help="frozen stages: 1 the stem; 3 also layer1-2 (IRN's released code)")
    add("--frozen-bn", action=argparse.BooleanOptionalAction, default=True, help="keep batch norm statistics (IRN)")
    add("--head-ratio", type=float, default=10.0, help="learning rate of the new layer over the backbone's")
    add("--crop-size", type=int, default=512, help="side of the training crop")
    add("--resize-long", type=int, nargs=2, default=(320, 640), metavar=("LO", "HI"),
        help="range of the long side before cropping; 0 0 keeps images as they are")
    add("--brightness", type=float, default=0.0, help="random gain of 1 +- this in training")
    add("--val-split", default="val", help="split for the classifier's mAP; '' for none")
    add("--scales", type=float, nargs="+", default=(1.0, 0.5, 1.5, 2.0), help="scales of the CAMs")
    add("--flip", action=argparse.BooleanOptionalAction, default=True, help="add the mirror image's maps")
    add("--cam-batch-size", type=int, default=4, help="images of one size per forward pass when making CAMs")
    add("--cam-format", choices=("npz", "irn"), default="npz", help="npz without pickle, or IRN's .npy")
    return parser


@torch.inference_mode()
def classifier_map(generator: torch.nn.Module, dataset: TagDataset, device: torch.device, batch_size: int,
                   workers: int) -> float:
    """Mean average precision in percent of the classifier's scores over a split, images at their own size."""
    generator.eval()
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=size_batches(dataset, batch_size),
                                         num_workers=workers, collate_fn=collate)
    scores, labels = [], []
    for batch in loader:
        scores.append(generator(batch.images.to(device)).mean(dim=(2, 3)).cpu())
        labels.append(batch.labels)
    return average_precision(torch.cat(scores).numpy(), torch.cat(labels).numpy())


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "train_cam")
    device = pick_device(args.device)
    transform = train_transform(args.crop_size, tuple(args.resize_long) if any(args.resize_long) else None,
                                brightness=args.brightness)
    dataset = build_dataset(args.dataset, args.data_root, args.split, skip_bad=args.skip_bad)
    val = build_dataset(args.dataset, args.data_root, args.val_split, skip_bad=args.skip_bad) if args.val_split else None
    run = Run(args.out, vars(args), args.resume, args.overwrite)
    print(f"{args.dataset} {args.split}: {len(dataset)} images, {len(dataset.classes)} classes; writing {run.out}")

    seed_everything(args.seed)
    options = dict(freeze_stages=args.freeze_stages, frozen_bn=args.frozen_bn)
    if args.init:
        generator, backbone, stride = load_generator(args.init, dataset.classes, args.backbone, args.output_stride,
                                                     **options)
    else:
        backbone, stride = args.backbone, args.output_stride
        generator = build_generator(backbone, dataset.classes, stride, args.weights, **options)
    generator.to(device, memory_format=torch.channels_last)
    loader = make_loader(dataset.with_transform(transform, masks=False), args.batch_size, args.workers, seed=args.seed,
                         drop_last=True)
    optimizer = make_optimizer(generator.parameter_groups(args.lr, args.head_ratio), args.optimizer, args.lr,
                               args.weight_decay, args.momentum)
    scheduler = make_scheduler(optimizer, args.schedule, args.epochs * len(loader), warmup=args.warmup)

    def step(batch):
        logits = generator(batch.images.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))
        return {"loss": classification_loss(logits, batch.labels)}

    fit(run, loader, step, {"generator": generator}, optimizer, scheduler, args.epochs, device, args.seed,
        args.clip_norm, label="train_cam", precision=args.precision)
    save_generator(generator, run.path("generator.pt"), backbone, stride, dataset.classes)
    if val is not None:
        value = classifier_map(generator, val, device, args.cam_batch_size, args.workers)
        run.log(label="val", mAP=value)
        print(f"classifier mAP on {args.val_split}: {value:.2f}")

    cams = run.path("cams")
    done = frozenset(list_cams(cams)) if args.resume and cams.is_dir() else frozenset()
    write_cams(generator, dataset, cams, device, args.scales, args.flip, args.cam_batch_size, args.workers,
               args.cam_format, done)
    best = print_cam_curve(dataset, cams)
    if best:
        run.log(label="cams", **best)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
