"""Stage 1: train a multi-label classifier on image tags and write its class activation maps (CAMs).

--generator clip trains nothing and writes the maps that frozen CLIP itself makes of the tags.
"""
import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from clipwsss.cams.clip_maps import write_clip_maps
from clipwsss.cams.generator import GENERATORS, KIND_OF_BACKBONE, build_generator, load_generator
from clipwsss.cams.maps import MapGenerator, rescale, write_cams
from clipwsss.datasets import Batch, TagDataset
from clipwsss.datasets.loaders import size_loader
from clipwsss.distributed import gather
from clipwsss.errors import run_script
from clipwsss.files import save_network
from clipwsss.flags import clip_flags, whole
from clipwsss.generator_options import (UNUSED_BY_CLIP, box_flag, cam_loader, crop_loader, generator_flags,
                                        generator_settings, open_validation)
from clipwsss.guidance.regions import load_clip
from clipwsss.guidance.words import encode_words, load_clip_words
from clipwsss.networks.resnet import fuse_batch_norm
from clipwsss.options import (COMMAND_LINE, open_dataset, open_scored, parse, refuse_unused,
                              say_absent_classes, script_parser, start_run, training_flags,
                              training_settings)
from clipwsss.report.best_epoch import BestEpoch
from clipwsss.report.metrics import average_precision
from clipwsss.report.contrast import NAMES_ADVICE, contrast_notes
from clipwsss.report.page import write_report
from clipwsss.report.scoring import print_cam_curve
from clipwsss.run import Run, notes_of
from clipwsss.training import (compile_networks, fit, pick_device, refuse_lone_values,
                               seed_everything)

RANDOM_NOTE = ("the classifier started from random weights, so that its maps tell almost nothing about where "
               "objects are (9 mIoU in a trial with 18 photographs): start from ImageNet's weights "
               "(clipwsss/WEIGHTS.md), or use train_cam.py --generator clip")


def get_parser() -> argparse.ArgumentParser:
    """The flags; presets/ has the values of each --generator and --dataset, and a flag replaces one."""
    parser = script_parser(__doc__, "python train_cam.py --dataset voc12 --data-root VOCdevkit/VOC2012",
                           ("backbone", "weights", "init", "cam_format", "generator", "clip"))
    add = parser.add_argument_group("classifier").add_argument
    add("--backbone", choices=tuple(KIND_OF_BACKBONE), default="resnet50", help="network of the classifier")
    add("--weights", default="imagenet", help="initial weights of the backbone: imagenet, none "
        "(random weights), a file of weights, or auto (imagenet if its weights are on disk or can be "
        "downloaded, else none)")
    add("--init", help="file of a generator to start from; --epochs 0 then writes its CAMs without training")
    add("--output-stride", type=whole(1, 64), default=16,
        help="ratio of the image size to the size of a ResNet's maps: 32, 16 or 8 (resnet_tiny: 4)")
    add("--val-split", default="val",
        help="split on which the classifier's mAP is measured; an empty string measures none")
    add = parser.add_argument_group("--generator clip").add_argument
    clip_flags(add)
    parser.set_defaults(clip="ViT-B/16")  # CLIP-ES'; the published guidance has another one
    add("--template", default="a clean origami {}.",
        help="text of a class and of a background word, which {} stands for")
    box_flag(add)
    training_flags(parser)
    generator_flags(parser, (*GENERATORS, "clip"))
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """InputError for a flag of the command line that means nothing to this --generator."""
    if args.generator == "clip":
        ignored = ("backbone", "weights", "init", "output_stride", "val_split", *UNUSED_BY_CLIP, "epochs",
                   "batch_size", "precision", "schedule", "weight_decay", "momentum", "warmup", "min_lr",
                   "clip_norm", "compile")
        reason = "trains nothing and has one network, --clip"
    else:
        ignored = ("clip", "clip_model", "clip_cache", "template", "box")
        reason = "does without CLIP"
    refuse_unused(args, ignored, f"--generator {args.generator} {reason}")


def imagenet_or_none(classes: list[str], settings: dict) -> str:
    """`imagenet` if the backbone's weights are on disk or can be downloaded; else `none`, with a message."""
    try:
        build_generator(classes, weights="imagenet", **settings)
    except FileNotFoundError as error:
        print(f"--weights auto: starting from random weights, so that the CAMs will be rough; {error}")
        return "none"
    return "imagenet"


@torch.inference_mode()
def classifier_map(generator: MapGenerator, dataset: TagDataset, device: torch.device, batch_size: int,
                   workers: int) -> float:
    """Mean average precision in percent of the classifier's scores over a split, images at their own size."""
    network = fuse_batch_norm(generator)
    scores = []
    labels = []
    for batch in size_loader(dataset, batch_size, workers):
        images = rescale(batch.images.to(device), multiple=generator.input_multiple)
        logits = list(network.classify(images).values())
        scores.append(logits[0].cpu())  # the first logits are the classifier's
        labels.append(batch.labels)
    all_scores = [part for process_scores in gather(scores) for part in process_scores]
    all_labels = [part for process_labels in gather(labels) for part in process_labels]
    return average_precision(torch.cat(all_scores).numpy(), torch.cat(all_labels).numpy())


def write_maps_of_clip(args: argparse.Namespace) -> int:
    """--generator clip: write the maps that frozen CLIP makes of the tags; see clip_maps.py."""
    device = pick_device(args.device)
    dataset = open_dataset(args)
    scored = open_scored(args, dataset)
    clip = load_clip(args.clip, device, args.clip_cache, args.clip_model)
    names, listed = load_clip_words(args.dataset, dataset.classes, dataset.synonyms)
    text = encode_words(clip, args.template, names)
    backgrounds = encode_words(clip, args.template, listed)
    run = start_run(args, dataset, clip=args.clip)
    print(f"{args.dataset} {args.split}: {len(dataset)} images, {len(dataset.classes)} classes; CLIP's own "
          f"maps against {len(listed)} background words; writing {run.out}")
    cams = run.out / "cams"
    write_clip_maps(clip, cam_loader(args, dataset, cams), cams, lambda names, classes: text[classes],
                    backgrounds, args.box, args.cam_format, args.test_precision)
    print("classifier mAP: none, because --generator clip has no classifier")
    run.result(**print_cam_curve(scored, cams), notes=contrast_notes(dataset, cams, NAMES_ADVICE))
    write_report(run.out, "train_cam", scored, cams=cams)
    return 0


def start_notes(args: argparse.Namespace) -> list[str]:
    """What the report says of the weights that the classifier started from."""
    if args.init:
        return notes_of(Path(args.init).parent)
    if args.weights == "none" and args.dataset != "toy":  # the toy's presets are made for random weights
        return [RANDOM_NOTE]
    return []


def train_classifier(args: argparse.Namespace, run: Run, loader: DataLoader, generator: MapGenerator,
                     validation: TagDataset | None) -> None:
    """Train the generator as a classifier of tags; validation: the split of --keep-best."""
    def loss(batch: Batch) -> dict[str, tuple]:
        logits = generator.classify(batch.images.contiguous(memory_format=torch.channels_last))
        terms = {}
        for name, values in logits.items():  # POLE eq. 1 for each
            total = F.multilabel_soft_margin_loss(values, batch.labels, reduction="sum")
            terms[name] = (1.0, total, len(values))
        return terms

    groups = generator.parameter_groups(args.lr, args.head_ratio)
    training = training_settings(args, "train_cam")
    if validation is None:
        fit(run, loader, loss, {"generator": generator}, groups, training)
        return
    best = BestEpoch(generator, validation, args.cam_batch_size, args.workers)
    fit(run, loader, loss, {"generator": generator}, groups, training, best.consider, {"best": best})
    best.restore()


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "train_cam")
    check_flags(args)
    if args.generator == "clip":
        return write_maps_of_clip(args)
    device = pick_device(args.device)
    dataset = open_dataset(args)
    if args.val_split:  # opened now, so that bad files are named before the training
        val_dataset = open_dataset(args, args.val_split)
    scored = open_scored(args, dataset)
    validation = open_validation(args)
    if args.weights == "auto" and not args.init:
        args.weights = imagenet_or_none(dataset.classes, generator_settings(args))
    if args.weights == "none" and not args.init and args.generator == "resnet":
        # Random weights are not worth freezing, unless the command line asks for it.
        if args.set_by.get("frozen_bn") != COMMAND_LINE and args.frozen_bn:
            args.frozen_bn = False
            args.set_by["frozen_bn"] = "--weights none"
            print("--weights none: the batch norm trains too")
        if args.set_by.get("freeze_stages") != COMMAND_LINE and args.freeze_stages:
            args.freeze_stages = 0
            args.set_by["freeze_stages"] = "--weights none"
            print("--weights none: all stages train")

    seed_everything(args.seed)
    if args.init:
        generator = load_generator(args.init, dataset.classes, args.generator, dataset.category_ids,
                                   **generator_settings(args))
    else:
        generator = build_generator(dataset.classes, weights=args.weights, **generator_settings(args))
    generator.to(device, memory_format=torch.channels_last)
    if args.compile:
        compile_networks(generator)
    loader = crop_loader(args, dataset, args.batch_size, generator.input_multiple)
    refuse_lone_values(generator, "classify", loader, args.crop_size, args.sync_bn)
    run = start_run(args, dataset, init=args.init, weights=args.weights, best_images=args.best_images)
    print(f"{args.dataset} {args.split}: {len(dataset)} images, {len(dataset.classes)} classes; "
          f"writing {run.out}")
    say_absent_classes(args, dataset)

    train_classifier(args, run, loader, generator, validation)
    save_network(generator, "generator", generator.config, run.out / "generator.pt")
    result = {}
    if args.val_split:
        result["mAP"] = classifier_map(generator, val_dataset, device, args.cam_batch_size, args.workers)
        print(f"classifier mAP on {args.val_split}: {result['mAP']:.2f}")

    cams = run.out / "cams"
    write_cams(generator, cam_loader(args, dataset, cams), cams, args.scales, args.flip, args.cam_format,
               args.test_precision)
    result.update(print_cam_curve(scored, cams))
    notes = start_notes(args)
    if notes:
        result["notes"] = notes
    run.result(**result)
    write_report(run.out, "train_cam", scored, cams=cams)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
