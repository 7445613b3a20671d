"""Stage 3: refine class activation maps (random walk, dense CRF, segments) and write pseudo masks.

The same command continues an interrupted run.
"""
import argparse
import sys
from collections.abc import Container
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from clipwsss.cams.cam_files import CamFile
from clipwsss.cams.generator import GENERATORS
from clipwsss.cams.mask_inputs import missing_inputs, read_inputs
from clipwsss.datasets import TagDataset
from clipwsss.datasets.image_files import read_mask
from clipwsss.datasets.corrections import find_corrections, place_corrections
from clipwsss.datasets.jobs import ImageJobs
from clipwsss.datasets.exports import LAYOUTS, write_layout
from clipwsss.datasets.loaders import make_loader
from clipwsss.datasets.transforms import train_transform
from clipwsss.distributed import broadcast
from clipwsss.errors import InputError, run_script
from clipwsss.flags import real, whole
from clipwsss.options import (COMMAND_LINE, drops_rest, first_command, of_last_stage, open_dataset,
                              open_scored, parse, say_stage, script_parser, start_run, start_weights,
                              training_flags, training_settings)
from clipwsss.pictures import write_mask
from clipwsss.refine.affinity import (AFFINITY_NETWORKS, build_affinity, load_affinity, save_affinity,
                                      smallest_crop)
from clipwsss.refine.affinity_flags import affinity_flags
from clipwsss.refine.crf import BILATERAL, GAUSSIAN
from clipwsss.refine.crf_flags import crf_flags
from clipwsss.refine.labels import confident_labels
from clipwsss.refine.segments import paint, read_segments
from clipwsss.refine.stages import (alpha_background, cam_maps, color_walk, constant_background, crf_labels,
                                    irn_walk, label_map, psa_walk)
from clipwsss.report import metrics
from clipwsss.report.page import write_report
from clipwsss.report.quality import QUALITY_FILE, mask_quality, write_quality
from clipwsss.report.scoring import NOTHING_SCORED, MaskScore, class_figures
from clipwsss.report.thresholds import ImageWalk, find_thresholds
from clipwsss.run import Run, notes_of, read_settings, refuse_overlap
from clipwsss.training import fit, pick_device, seed_everything

# The walks of --refine: functions of the settings, the affinity network, the maps that the walk starts from
# and the image (uint8 [3, H, W]). They return the maps at the image's size.
WALKS = {
    "none": lambda args, network, maps, image: maps,
    "color": lambda args, network, maps, image: color_walk(
        maps, image, args.radius, args.beta, args.exp_times, args.color_stride),
    "irn": lambda args, network, maps, image: irn_walk(
        maps, image, network, args.radius, args.beta, args.exp_times, args.pad_to),
    "psa": lambda args, network, maps, image: psa_walk(
        maps, image, network, args.radius, args.beta, args.exp_times),
}
WALKS_FROM_STORED_SIZE = ("color", "irn")  # they start from maps as stored; the others at the image's size

# What decides the labels after the walk: functions of the settings, the image's name and pixels (uint8
# [H, W, 3]), the scores [1 + k, H, W] and the labels [H, W] so far. They return new labels.
DECIDERS = {
    "crf": lambda args, name, pixels, scores, labels: crf_labels(
        pixels, labels, len(scores), args.crf_gaussian, args.crf_bilateral,
        scores if args.crf_start == "scores" else None, args.unsure),
    "segments": lambda args, name, pixels, scores, labels: torch.from_numpy(paint(
        scores[1:].numpy(), read_segments(args.segments, name, pixels.shape[:2]), args.segment_power)),
}


def background_rule(text: str) -> float | str:
    """Parse --threshold: a number below 1, auto, otsu or alpha."""
    return text if text in ("auto", "otsu", "alpha") else real(0, 0.999)(text)


def get_parser() -> argparse.ArgumentParser:
    """The flags of this script; the defaults are IRN's values, which presets and explicit flags replace."""
    parser = script_parser(__doc__, "python make_pseudo.py --dataset voc12 --data-root VOCdevkit/VOC2012 "
                           "--refine irn crf",
                           ("refine", "generator", "cams", "threshold", "segments", "weights"))
    add = parser.add_argument_group("refinement").add_argument
    add("--generator", choices=(*GENERATORS, "clip"), default="resnet",
        help="network that made the CAMs; it selects the defaults of the other flags: for weaktr those of "
        "WeakTr's masks (a threshold and a CRF, no walk), for clip those of CLIP-ES for CLIP's own maps")
    add("--refine", nargs="+", choices=(*WALKS, "crf"), metavar="STAGE",
        help="stages of refinement in their order: at most one random walk (color needs no training, irn and "
        "psa train an affinity network), then crf; `none` refines nothing and cannot be combined with "
        "other stages")
    add("--cams", type=Path, help="folder of CAM files of this library, of IRN or of PSA (default: the "
        "CAMs of train_prompt.py, or of train_cam.py where that has not run)")
    add("--threshold", type=background_rule, default=0.25, metavar="T|auto|otsu|alpha",
        help="score of the background at every pixel; auto: that of highest mIoU on --score-split, before "
        "CRF and segments (without masks: otsu); otsu: Otsu's threshold of up to 500 images' maps, which "
        "needs no masks; alpha: PSA's background map (--alpha)")
    add("--alpha", type=real(0), default=16.0,
        help="exponent of PSA's background map (1 - max CAM)^alpha, for --threshold alpha")
    add("--radius", type=whole(2, 64), default=5,
        help="the walk steps between cells of its grid that are closer than this")
    add("--beta", type=real(0.001), default=10.0, help="exponent of the affinities in the walk")
    add("--exp-times", type=whole(0, 20), default=8, metavar="N", help="the walk takes 2**N steps")
    add("--color-stride", type=whole(1, 64), default=4,
        help="side in pixels of a cell of the color walk's grid")
    add("--segments", type=Path, help="folder of class-agnostic segments (PNG label maps or SAM's JSON) from "
        "which the masks are painted, as in FMA-WSSS; --segments cannot be combined with crf")
    add("--segment-power", type=real(0), default=0.6,
        help="exponent of a segment's background score, (1 - largest class score)^power")
    add("--score-split",
        help="split whose pseudo masks are scored, a part of --split; without it, all of --split")
    add("--corrections", type=Path, metavar="DIR",
        help="folder of corrected label maps NAME.png, which win over the made ones; it may change before a "
        "run goes on")
    add("--layout", choices=tuple(LAYOUTS), help="also write images and masks to OUT/voc in "
        "VOC's layout, to OUT/mmseg in that of mmsegmentation, or to OUT/coco with COCO's instances")
    crf_flags(parser, GAUSSIAN, BILATERAL)
    add = parser.add_argument_group("labels of the dense CRF").add_argument
    add("--crf-start", choices=("labels", "scores"), default="labels",
        help="what the CRF starts from: the labels of the largest scores (IRN), or the scores (CLIP-ES)")
    add("--unsure", type=real(0, 1), default=0.0, metavar="P",
        help="pixels whose label has a probability below P after the CRF become 255, which train_seg.py "
        "ignores and no score counts (CLIP-ES: 0.95)")
    affinity_flags(parser)
    training_flags(parser)
    return parser


def split_stages(refine: list[str], segments: Path | None) -> tuple[str, list[str]]:
    """Names of the walk and of the deciders of --refine and --segments; InputError where they do not fit."""
    asked = f"--refine {' '.join(refine)}"
    if "none" in refine and len(refine) > 1:
        raise InputError(f"{asked}: `none` cannot be combined with other stages")
    if refine[0] in WALKS:
        walk = refine[0]
        deciders = refine[1:]
    else:
        walk = "none"
        deciders = list(refine)
    if any(name in WALKS for name in deciders):
        raise InputError(f"{asked}: at most one walk (color, irn or psa) is possible, before crf")
    if segments is not None:
        if deciders:
            raise InputError(f"{asked}: --segments cannot be combined with crf")
        deciders = ["segments"]
    return walk, deciders


def say_maker(args: argparse.Namespace) -> None:
    """Print that the masks get the settings for CAMs of another maker than the run that wrote --cams."""
    path = args.cams.parent / "args.json"
    if args.set_by.get("generator") == COMMAND_LINE or not path.is_file():
        return
    try:
        made = read_settings(path)
    except InputError:  # a file of someone else
        return
    maker = "clip" if made.get("maps") == "clip" else made.get("generator")
    if maker in (*GENERATORS, "clip") and maker != args.generator:
        print(f"note: the masks get the settings of --generator {args.generator}, but {args.cams} was made "
              f"by {maker}: --generator {maker} has the settings for it")


def write_labels(args: argparse.Namespace, dataset: TagDataset, cams: Path, walk: str, folder: Path,
                 index: int) -> None:
    """Write one image's confident labels, from which the affinity network of the walk learns."""
    pixels, file = read_inputs(dataset, cams, index)
    maps = cam_maps(file, pixels.shape[:2]).numpy()
    labels = confident_labels(pixels, maps, file.keys, *args.confident, walk, args.crf_gaussian,
                              args.crf_bilateral)
    write_mask(folder / f"{dataset.names[index]}.png", labels, dataset.palette)


def train_affinity(args: argparse.Namespace, run: Run, dataset: TagDataset, cams: Path, walk: str,
                   network: nn.Module, backbone: str, jobs: ImageJobs) -> nn.Module:
    """Train the affinity network of the walk on confident labels; both are kept in the run's folder."""
    folder = run.out / "labels"
    missing = [index for index, name in enumerate(dataset.names) if not (folder / f"{name}.png").exists()]
    work = partial(write_labels, args, dataset, cams, walk, folder)
    for _ in jobs.run("confident labels", work, missing):
        pass
    labelled = dataset.with_masks(folder, skip_bad=args.skip_bad).with_transform(
        train_transform(args.crop_size, None, tuple(args.scales), brightness=args.brightness))
    loader = make_loader(labelled, args.batch_size, args.workers, seed=args.seed,
                         drop_last=drops_rest(args, len(labelled), args.batch_size))
    fit(run, loader, lambda batch: network.loss_terms(batch.images, batch.masks, args.train_radius),
        {"network": network}, network.parameter_groups(args.lr), training_settings(args, f"{walk}_network"))
    save_affinity(network, run.out / "affinity.pt", walk, backbone)
    return network.eval()


def new_affinity_network(args: argparse.Namespace, walk: str) -> tuple[nn.Module, str]:
    """An untrained affinity network of the walk and its backbone.

    InputError: weights that are missing or do not fit, or crops that are too small for the network.
    """
    weights = start_weights(args)
    if args.weights in ("generator", "auto"):
        say_stage(weights)
    if args.weights == "generator" and not weights.is_file():
        raise InputError(f"--weights generator: {weights}: no such file; run train_prompt.py first, or give "
                         "imagenet, none or a file")
    seed_everything(args.seed)
    network, backbone = build_affinity(walk, args.backbone, weights)
    smallest = smallest_crop(walk, backbone, args.train_radius)
    if args.crop_size < smallest:
        raise InputError(f"--crop-size {args.crop_size}: {walk} with --train-radius {args.train_radius} "
                         f"needs crops of at least {smallest} pixels")
    return network, backbone


def walk_maps(args: argparse.Namespace, walk: str, network: nn.Module | None, device: torch.device,
              pixels: np.ndarray, file: CamFile) -> Tensor:
    """Maps of one image after the walk of --refine: [k, H, W], or [1 + k, H, W] with PSA's background map."""
    if walk in WALKS_FROM_STORED_SIZE:
        maps = torch.from_numpy(file.cam)
    else:
        maps = cam_maps(file, pixels.shape[:2])
    if args.threshold == "alpha":
        maps = alpha_background(maps, args.alpha)
    if network is not None:
        network = network.to(device)
    image = torch.tensor(pixels, device=device).permute(2, 0, 1)
    return WALKS[walk](args, network, maps, image)


def refine_image(args: argparse.Namespace, walk_image: ImageWalk, deciders: list[str], name: str,
                 pixels: np.ndarray, file: CamFile, threshold: float | str) -> np.ndarray:
    """Label map uint8 [H, W] of one image: CAM file -> walk -> background score -> deciders -> label map.

    threshold: score of the background, or "alpha" for PSA's background map, which has walked with the maps.
    """
    with torch.inference_mode():
        scores = walk_image(pixels, file)
        if threshold != "alpha":
            scores = constant_background(scores, threshold)
        labels = scores.argmax(0)
        for decider in deciders:
            labels = DECIDERS[decider](args, name, pixels, scores, labels)
        return label_map(labels, file.keys)


def unrefined_image(args: argparse.Namespace, file: CamFile, size: tuple[int, int],
                    threshold: float | str) -> np.ndarray:
    """Label map uint8 [H, W] of the CAMs alone: CAM file -> background score -> label map."""
    with torch.inference_mode():
        maps = cam_maps(file, size)
        if threshold == "alpha":
            scores = alpha_background(maps, args.alpha)
        else:
            scores = constant_background(maps, threshold)
        return label_map(scores.argmax(0), file.keys)


def write_pseudo_mask(args: argparse.Namespace, dataset: TagDataset, cams: Path, walk_image: ImageWalk,
                      deciders: list[str], thresholds: tuple[float | str, float | str],
                      scored: Container[str], index: int) -> MaskScore:
    """Write one image's pseudo mask unless it exists, and compare it with the mask of the CAMs alone.

    thresholds: of the refined maps and of the CAMs alone, numbers or "alpha". Only masks of images that are
    `scored` are also compared with the true mask.
    """
    name = dataset.names[index]
    pixels, file = read_inputs(dataset, cams, index)
    unrefined = unrefined_image(args, file, pixels.shape[:2], thresholds[1])
    path = args.out / "masks" / f"{name}.png"
    if path.exists():
        mask = read_mask(path)
    else:
        mask = refine_image(args, walk_image, deciders, name, pixels, file, thresholds[0])
        write_mask(path, mask, dataset.palette)
    changed = int((mask != unrefined).sum())
    unsure = int((mask == metrics.IGNORE).sum())
    quality = (mask_quality(dataset, index, mask, unrefined),)
    truth = dataset.load_mask(index) if name in scored else None
    if truth is None:
        return MaskScore(1, mask.size, changed, unsure, with_truth=0, refined=0, unrefined=0, quality=quality)
    n = len(dataset.classes) + 1
    return MaskScore(1, mask.size, changed, unsure, with_truth=1, refined=metrics.confusion(mask, truth, n),
                     unrefined=metrics.confusion(unrefined, truth, n), quality=quality)


def report_scores(run: Run, total: MaskScore, names: list[str], notes: list[str]) -> None:
    """Print the mIoU before and after refinement and the share of changed pixels; write result.json.

    total: the sum of the scores of all images; names: of the classes, the background first; notes: of the
    run that made the CAMs.
    """
    share = 100 * total.changed / total.pixels
    figures = {"images": total.images, "changed": share}
    print(f"{total.images} masks in {run.out / 'masks'}; refinement changed {share:.2f} % of the pixels")
    if total.unsure:
        figures["unsure"] = 100 * total.unsure / total.pixels
        print(f"{figures['unsure']:.2f} % of the pixels are unsure (255); no mIoU counts them")
    if total.with_truth and total.refined.any():
        refined = metrics.scores(total.refined)
        unrefined = metrics.scores(total.unrefined)
        figures.update(class_figures(total.refined, names))
        figures["cam_miou"] = float(unrefined["miou"])
        print(f"mIoU {refined['miou']:.2f} (CAMs alone {unrefined['miou']:.2f}) over {refined['classes']} "
              f"classes that occur, {total.with_truth} images with masks")
    else:
        print(NOTHING_SCORED if total.with_truth else "there are no masks, so no mIoU is computed")
    run.result(**figures, notes=notes)


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "make_pseudo")
    device = pick_device(args.device)
    walk, deciders = split_stages(args.refine, args.segments)
    if args.unsure and "crf" not in deciders:
        if args.set_by["unsure"] == COMMAND_LINE:
            raise InputError(f"--unsure {args.unsure}: it needs the CRF's probabilities; add crf to --refine")
        args.unsure = 0.0
        args.set_by["unsure"] = "--refine without crf"
    dataset = open_dataset(args)
    if args.cams is None:
        args.cams = of_last_stage(args, "cams")
        if not args.cams.is_dir():
            script = "train_prompt" if args.cams.parent.exists() else "train_cam"
            raise InputError(f"{args.cams}: no such folder of CAM files; {first_command(args, script)}")
        say_stage(args.cams)
    say_maker(args)
    cams = args.cams
    jobs = ImageJobs(dataset.names, args.workers, args.skip_bad, device.type)
    jobs.leave_out(missing_inputs(dataset, cams, args.segments))
    scored = set(open_scored(args, dataset).names)
    corrections = find_corrections(args.corrections, dataset)

    # The affinity network of the walk: a trained one, this run's own from an earlier call, or a new one.
    network = None
    untrained_backbone = None
    if walk in AFFINITY_NETWORKS:
        own = args.out / "affinity.pt"
        if args.affinity_checkpoint:
            network = load_affinity(args.affinity_checkpoint, walk)
        elif broadcast(own.exists() and not args.overwrite):
            network = load_affinity(own, walk)
        else:
            network, untrained_backbone = new_affinity_network(args, walk)

    if args.corrections:
        refuse_overlap("--out", args.out, (), inputs={"corrections": args.corrections})
    if not args.resume:  # the same command continues a run without --resume too
        args.resume = broadcast(not args.overwrite and (args.out / "args.json").exists())
    run = start_run(args, dataset, cams=cams, segments=args.segments, weights=start_weights(args),
                    affinity_checkpoint=args.affinity_checkpoint)
    print(f"{args.dataset} {args.split}: {len(dataset)} images, CAMs from {cams}, "
          f"--refine {' '.join(args.refine)}; writing to {run.out}")

    if untrained_backbone:
        network = train_affinity(args, run, dataset, cams, walk, network.to(device), untrained_backbone, jobs)
        network = network.cpu()  # processes that write masks get a copy and move it to the device

    place_corrections(corrections, dataset, run.out)
    walk_image = partial(walk_maps, args, walk, network, device)
    thresholds = find_thresholds(args.threshold, run.out, dataset, cams, walk_image, scored, jobs)

    # For every image: CAM file -> walk -> background score -> deciders -> label map (`refine_image`).
    work = partial(write_pseudo_mask, args, dataset, cams, walk_image, deciders, thresholds, scored)
    totals = jobs.total("pseudo masks", work, range(len(dataset)))
    if totals is None:
        raise InputError(f"{cams}: no image of {args.split} has a usable CAM file")
    total = MaskScore(*totals)
    report_scores(run, total, ["background", *dataset.classes], notes_of(cams.parent))
    write_quality(total.quality, run.out / QUALITY_FILE, "CAM")
    if args.layout:
        write_layout(args.layout, dataset, run.out / "masks", run.out / args.layout, args.workers)
    write_report(run.out, "make_pseudo", dataset, cams, run.out / "masks")
    skipped = len(jobs.failures) + len(dataset.skipped)
    if skipped:
        print(f"skipped {skipped} bad images, which are named above", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
