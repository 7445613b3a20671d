"""Stage 4: train a segmenter on pseudo masks, write its predictions; segment images of your own with it."""
import argparse
import signal
import sys
from pathlib import Path

if __name__ == "__main__":  # until `run_script`, Ctrl-C ends this without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch

from clipwsss.datasets import Batch, TagDataset
from clipwsss.datasets.loaders import make_loader
from clipwsss.datasets.transforms import train_transform
from clipwsss.distributed import is_main
from clipwsss.errors import InputError, run_script
from clipwsss.flags import Ascending, file_to_write, real, whole
from clipwsss.networks.deeplab import Design
from clipwsss.networks.resnet import RESNETS
from clipwsss.options import (open_dataset, inference_flags, parse, script_parser, stage_folder, start_run,
                              training_flags, training_settings, start_weights)
from clipwsss.report.page import StageOutputs, write_report
from clipwsss.report.scoring import print_label_miou
from clipwsss.run import Run
from clipwsss.segment.predict import FUSIONS, Photos, Prediction, image_files, predict_dataset
from clipwsss.segment.segmenter import (SEGMENTERS, Segmenter, build_segmenter, export_network,
                                         load_segmenter)
from clipwsss.segment.submission import pack
from clipwsss.training import compile_networks, fit, pick_device, seed_everything

PASS_STEPS = 200


def get_parser() -> argparse.ArgumentParser:
    """Flags; defaults are deeplab-pytorch's for VOC 2012 (DeepLabV2, 20,000 iterations of 2 x 5 images)."""
    parser = script_parser(__doc__, "python train_seg.py --dataset voc12 --data-root VOCdevkit/VOC2012",
                           ("network", "weights", "masks", "iterations", "predict_split", "checkpoint",
                            "predict"))
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("network").add_argument
    add("--network", choices=SEGMENTERS, default="deeplabv2", help="mask2former needs the package transformers")
    add("--weights", default="imagenet", help="start: imagenet, none, generator (train_prompt's), a file of "
        "torchvision's or deeplab-pytorch's; a model of transformers")
    add("--backbone", choices=RESNETS, default="resnet101", help="of DeepLab, as the next four")
    add("--output-stride", type=whole(1, 64), default=8, help="image size over map size")
    add("--rates", type=whole(1, 255), nargs="+", help="dilations of the ASPP (default: as published)")
    add("--frozen-bn", action=switch, default=True, help="batch norm does not learn")
    add("--multi-scale", action=switch, default=None,
        help="losses at 1, 0.75, 0.5 and their maximum (default: deeplabv2 only)")
    add = parser.add_argument_group("training data and loss").add_argument
    add("--masks", type=Path, help="folder of training masks (default: make_pseudo's); truth: the data's own")
    add("--iterations", type=whole(1), default=20000, metavar="N", help="optimiser steps (without --epochs)")
    add("--accumulate", type=whole(1, 65536), default=2, help="batches whose gradients make one step")
    add("--scales", type=real(0.1, 8), nargs="+", default=(0.5, 0.75, 1.0, 1.25, 1.5), action=Ascending,
        help="training scales: one of them is drawn for an image; of two, anything between")
    add("--balanced", action="store_true", help="cross entropy: half foreground, half background")
    add("--head-ratio", type=real(0, 1e4), default=10.0,
        help="learning rate of new layers over the backbone's (biases of the V2 ASPP: twice that)")
    add = parser.add_argument_group("prediction").add_argument
    add("--predict-split", default="val", help="split to predict; '' for none")
    add("--checkpoint", type=Path, help="use this trained segmenter, train nothing")
    add("--crf", action=switch, default=True, help="dense CRF after prediction")
    add("--test-scales", type=real(0.1, 8), nargs="+", default=(1.0, 0.75, 0.5), help="scales in predictions")
    add("--test-fusion", choices=FUSIONS, default="max", help="what joins them: the mean of probabilities, "
        "or the maximum of logits at the first one's size, as DeepLabV2 is tested")
    add("--test-flip", action=switch, default=False, help="average with the mirror images")
    add("--test-batch-size", type=whole(1, 65536), default=1,
        help="images of one size per forward pass in predictions")
    inference_flags(add)
    add = parser.add_argument_group("other outputs").add_argument
    add("--predict", type=Path, nargs="+", metavar="PATH",
        help="segment these images or folders with a trained segmenter, with overlays")
    add("--submit", type=file_to_write(".tgz", ".tar.gz", ".json"), metavar="FILE",
        help="pack the split's predictions for the VOC server (.tgz) or as COCO's results (.json)")
    add("--export", type=file_to_write(".pt2", ".onnx"), metavar="FILE",
        help="write the segmenter as .pt2 (torch.export) or .onnx")
    training_flags(parser)
    return parser


def training_data(args: argparse.Namespace) -> TagDataset:
    """The split with the masks to learn from."""
    dataset, masks = open_dataset(args), masks_of(args)
    if str(masks) != "truth":
        dataset = dataset.with_masks(masks, args.skip_bad)
    elif not dataset.has_masks:
        raise InputError(f"--masks truth: {args.data_root} has no masks for {args.split}")
    print(f"{args.dataset} {args.split}: {len(dataset)} images, masks of {masks}")
    return dataset.with_transform(
        train_transform(args.crop_size, None, tuple(args.scales), brightness=args.brightness))


def masks_of(args: argparse.Namespace) -> Path:
    """The folder of training masks; `truth` for the data's own."""
    return args.masks or stage_folder(args.runs, args.dataset, "make_pseudo") / "masks"


def start(args: argparse.Namespace, dataset: TagDataset) -> Segmenter:
    """The segmenter that training starts from."""
    seed_everything(args.seed)
    design = Design(args.network, args.backbone, args.output_stride, args.rates, args.multi_scale,
                    args.frozen_bn)
    return build_segmenter(design._asdict(), dataset.classes, dataset.palette, start_weights(args))


def train(args: argparse.Namespace, run: Run, segmenter: Segmenter, dataset: TagDataset) -> None:
    """Train a segmenter on the data's masks and write segmenter.pt."""
    network, data = segmenter.network, dataset
    if args.compile:
        compile_networks(network)
    if args.epochs is None:  # few images: repeat them, so that a pass and its checkpoint are worth it
        times = PASS_STEPS * args.accumulate * args.batch_size // len(dataset)
        data = torch.utils.data.ConcatDataset([dataset] * max(1, times))
    loader = make_loader(data, args.batch_size, args.workers, seed=args.seed, drop_last=True)
    per_epoch = -(-len(loader) // args.accumulate)
    steps = args.epochs * per_epoch if args.epochs is not None else args.iterations
    print(f"{args.network}, {steps} steps of {args.accumulate} x {args.batch_size}; writing {run.out}"
          + "; --weights none: batch norm trains too" * (args.weights == "none" and not args.frozen_bn))

    def loss(batch: Batch) -> dict[str, tuple]:
        images = batch.images.contiguous(memory_format=torch.channels_last)
        return network.loss_terms(images, batch.masks, args.balanced)

    fit(run, loader, loss, {"network": network},
        network.parameter_groups(args.lr, args.weight_decay, args.head_ratio),
        training_settings(args, "train_seg", epochs=-(-steps // per_epoch), steps=steps))
    network.eval()
    segmenter.save(run.path("segmenter.pt"))


def predict_split(args: argparse.Namespace, run: Run, segmenter: Segmenter, dataset: TagDataset,
                  prediction: Prediction) -> dict:
    """Write the label maps of --predict-split, packed for the server if asked to; their mIoU."""
    split, folder = args.predict_split, run.path("predictions")
    done = {name for name in dataset.names if args.resume and (folder / f"{name}.png").exists()}
    predict_dataset(segmenter, dataset, folder, prediction, done)
    figures = print_label_miou(dataset, folder, f"{split} predictions", args.workers)
    if args.submit and is_main():
        pack(dataset, folder, args.submit)
        print(f"{len(dataset)} checked label maps in {args.submit}")
    return {"split": split, **figures}


def use(args: argparse.Namespace, segmenter: Segmenter, prediction: Prediction) -> None:
    """--predict: predicted/NAME.png (label map) and NAME_overlay.png of a user's images; --export.

    They lie in --out, or beside --checkpoint, or in the stage's folder.
    """
    if args.predict:
        beside = args.checkpoint and "out" not in args.set_by
        folder = (args.checkpoint.parent if beside else args.out) / "predicted"
        files = image_files(args.predict, folder, args.overwrite)
        photos = Photos(files, args.skip_bad, args.max_pixels)
        for problem in photos.skipped:
            print(f"skipped: {problem}", file=sys.stderr)
        predict_dataset(segmenter, photos, folder, prediction, overlays=True)
        print(f"{len(photos)} label maps and overlays in {folder}")
    if args.export and is_main():
        if segmenter.design["network"] == "mask2former":
            raise InputError("--export: DeepLab only; save mask2former by transformers' own means")
        export_network(segmenter.network, args.export)
        print(f"exported {args.export} ({args.export.stat().st_size / 1e6:.1f} MB)")


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "train_seg")
    device = pick_device(args.device)
    if args.compile and args.network == "mask2former":
        raise InputError("--compile: DeepLab only")
    prediction = Prediction(args.test_scales, args.test_flip, args.crf, args.test_batch_size, args.workers,
                            args.test_precision, args.test_fusion)
    uses = args.predict or args.export
    trained = args.checkpoint or (args.out / "segmenter.pt" if uses else None)
    data = None if trained else training_data(args)
    segmenter = load_segmenter(trained) if trained else start(args, data)
    segmenter.network.to(device, memory_format=torch.channels_last)
    if uses:
        use(args, segmenter, prediction)
        return 0
    unseen = open_dataset(args, args.predict_split) if args.predict_split else None
    if unseen and list(unseen.classes) != list(segmenter.classes):
        raise InputError(f"--checkpoint {trained}: made for the classes {', '.join(segmenter.classes)}; "
                         f"{args.data_root} has {', '.join(unseen.classes)}")
    run = start_run(args, data or unseen, masks=masks_of(args) if data else None, checkpoint=args.checkpoint,
                    weights=start_weights(args))
    if data:
        train(args, run, segmenter, data)
    figures = predict_split(args, run, segmenter, unseen, prediction) if unseen else {}
    run.result(**figures)
    write_report(run.out, "train_seg",
                 StageOutputs(unseen or data, masks=run.path("predictions") if unseen else None))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
