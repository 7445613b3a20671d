"""Stage 3: refine class activation maps (random walk, dense CRF, PAMR, segments) and write pseudo masks."""
import argparse
import json
import signal
import sys
from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # until `run_script`, Ctrl-C ends this without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
import torch

from clipwsss.cams.cam_files import CamFile, check_cam, list_cams, read_cam, resize_cam
from clipwsss.datasets import TagDataset
from clipwsss.datasets.base import files_of, read_mask
from clipwsss.datasets.jobs import ImageJobs
from clipwsss.datasets.layouts import LAYOUTS, write_layout
from clipwsss.datasets.loaders import make_loader
from clipwsss.datasets.transforms import train_transform
from clipwsss.distributed import broadcast, barrier, is_main
from clipwsss.errors import InputError, input_errors, run_script
from clipwsss.files import write_json
from clipwsss.flags import Ascending, real, whole
from clipwsss.networks.resnet import RESNETS
from clipwsss.options import (open_dataset, parse, open_scored, script_parser, stage_folder, start_run,
                              training_flags, training_settings, start_weights)
from clipwsss.pictures import write_mask
from clipwsss.refine.affinity import build_affinity, least_crop, load_affinity, save_affinity
from clipwsss.refine.labels import confident_labels
from clipwsss.refine.stages import (STAGES, Alpha, Constant, Paint, Picture, Snap, Walk, build_stage,
                                    check_stages, refined_maps, refined_mask)
from clipwsss.report.metrics import confusion, scores, threshold_confusions
from clipwsss.report.page import StageOutputs, write_report
from clipwsss.report.scoring import THRESHOLDS, class_figures, miou_curve
from clipwsss.run import Run
from clipwsss.training import fit, pick_device, seed_everything

PAPER_THRESHOLD = 0.25  # IRN's sem_seg_bg_thres


def background_rule(text: str) -> float | str:
    """--threshold: a number below 1, auto or alpha."""
    return text if text in ("auto", "alpha") else real(0, 0.999)(text)


def get_parser() -> argparse.ArgumentParser:
    """Flags; defaults are IRN's values, --refine and --dataset fill in others, an explicit flag wins."""
    parser = script_parser(__doc__, "python make_pseudo.py --dataset voc12 --data-root VOCdevkit/VOC2012 "
                           "--refine irn crf",
                           ("refine", "cams", "threshold", "segments", "segment_rule", "weights"))
    add = parser.add_argument_group("refinement").add_argument
    add("--refine", nargs="+", choices=("none", *STAGES), metavar="STAGE",
        help=f"stages in their order, of {', '.join(STAGES)}; none: the CAMs' own masks")
    add("--cams", type=Path, help="folder of CAM files, ours, IRN's or PSA's (default: train_prompt's)")
    add("--threshold", type=background_rule, default=PAPER_THRESHOLD, metavar="T|auto|alpha",
        help="background score; auto: the best by mIoU before CRF and segments where there are masks; "
        "alpha: PSA's background map, which walks too")
    add("--alpha", type=real(0), default=16.0, help="exponent of PSA's background map (1 - max CAM)^alpha")
    add("--radius", type=whole(2, 64), default=5, help="pixels closer than this have an affinity")
    add("--beta", type=real(0), default=10.0, help="power of the affinities")
    add("--exp-times", type=whole(0, 30), default=8, help="the walk takes 2 to this many steps")
    add("--color-stride", type=whole(1, 64), default=4, help="image size over the grid of the colour walk")
    add("--segments", type=Path, help="folder of class-agnostic segments (PNG, SAM's JSON) that decide masks")
    add("--segment-rule", choices=("sepl", "fma"), default="sepl", help="sepl: masks are snapped to "
        "segments; fma: segments are painted by their scores, as for SemPLeS' 78.4 (--refine none)")
    add("--segment-power", type=real(0), default=0.6, help="fma: background (1 - largest score)^this")
    add("--segment-inside", type=real(0, 1), default=0.5,
        help="sepl: a class takes a segment of which it has more than this share")
    add("--segment-cover", type=real(0, 1), default=0.85,
        help="or in which at least this share of the class lies")
    add("--score-split", help="split whose masks are scored (default: --split)")
    add("--layout", choices=tuple(LAYOUTS), help="also write OUT/voc, OUT/mmseg: as other libraries read it")
    add = parser.add_argument_group("affinity network (irn, psa)").add_argument
    add("--affinity-checkpoint", type=Path,
        help="trained irn or psa network (or IRN's res50_irn.pth), which spares the training")
    add("--confident", type=real(0), nargs=2, default=(0.30, 0.05), metavar=("FG", "BG"),
        help="background scores that sure foreground exceeds and sure background does not (CLIMS 0.3 0.1); "
        "psa: the two exponents of its background map")
    add("--backbone", choices=RESNETS, default="resnet50", help="of the affinity network")
    add("--weights", default="imagenet",
        help="its start: imagenet, none, generator (train_prompt's), a file of torchvision or of a generator")
    add("--scales", type=real(0.1, 8), nargs=2, default=(0.5, 1.5), metavar=("LO", "HI"), action=Ascending,
        help="training scales")
    add("--train-radius", type=whole(2, 64), default=10, help="radius of the pairs that training looks at")
    training_flags(parser, resumes=False)
    return parser


class Scored(NamedTuple):
    """Counts of one image or, added up, of many: `changed` pixels differ between its mask and its CAMs'.

    after, before: confusions of these two where there is a truth (else 0), of `scored` images.
    """
    images: int
    changed: int
    pixels: int
    scored: int
    after: np.ndarray | int
    before: np.ndarray | int


class TaggedCams(NamedTuple):
    """The images and the folder of their CAM files."""
    dataset: TagDataset
    cams: Path

    def read(self, index: int) -> tuple[Picture, CamFile]:
        """An image and its checked CAM file."""
        name = self.dataset.names[index]
        file = check_cam(read_cam(self.cams, name), self.cams / name, self.dataset.image_size(index),
                         len(self.dataset.classes), self.dataset.entries[index].tags or ())
        return Picture(name, np.asarray(self.dataset.load_image(index))), file

    def missing(self, segments: Path | None) -> dict[int, str]:
        """Images without a CAM file, or without segments where they are asked for: number -> line."""
        places = [(f"{self.cams}/{{}}.npz (or .npy): no CAM file for this image", set(list_cams(self.cams)))]
        if segments:
            stems = {path.stem for path in files_of(segments, (".png", ".json"))}
            places.append((f"{segments}/{{}}.png (or .json): no segments of this image", stems))
        return {i: line.format(name) for line, present in places
                for i, name in enumerate(self.dataset.names) if name not in present}


def write_labels(inputs: TaggedCams, folder: Path, kind: str, confident: tuple[float, float],
                 index: int) -> None:
    """Write one image's confident labels, which an affinity network learns from."""
    picture, file = inputs.read(index)
    labels = confident_labels(picture.pixels, resize_cam(file, picture.size), file.keys, *confident, kind)
    write_mask(folder / f"{picture.name}.png", labels, inputs.dataset.palette)


def threshold_tables(inputs: TaggedCams, stages: list, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Confusions [T, n, n] of one image at every threshold: of the maps after these stages, of CAMs alone."""
    picture, file = inputs.read(index)
    truth, n = inputs.dataset.load_mask(index), len(inputs.dataset.classes) + 1
    with torch.inference_mode():
        maps = refined_maps(picture, file, Constant(0.0), stages)[1:].numpy()
    return tuple(threshold_confusions(part, file.keys, truth, THRESHOLDS, n)
                 for part in (maps, resize_cam(file, picture.size)))


def write_pseudo(inputs: TaggedCams, stages: list, backgrounds: tuple, folder: Path, scored: set[str],
                 index: int) -> Scored:
    """Write one image's pseudo mask unless it is there, and score it beside the mask of its CAMs alone.

    backgrounds: of the refined maps, and of the CAMs alone. scored: names of the images that are scored.
    """
    dataset, (picture, file) = inputs.dataset, inputs.read(index)
    path, before = folder / f"{picture.name}.png", refined_mask(picture, file, backgrounds[1], ())
    if path.exists():
        after = read_mask(path)
    else:
        after = refined_mask(picture, file, backgrounds[0], stages)
        write_mask(path, after, dataset.palette)
    truth = dataset.load_mask(index) if picture.name in scored else None
    tables = [0 if truth is None else confusion(mask, truth, len(dataset.classes) + 1)
              for mask in (after, before)]
    return Scored(1, int((after != before).sum()), after.size, int(truth is not None), *tables)


def train_affinity(args: argparse.Namespace, run: Run, inputs: TaggedCams, kind: str,
                   network: torch.nn.Module, backbone: str, jobs: ImageJobs) -> torch.nn.Module:
    """Label images where CAMs are sure and train the IRN or PSA network on that."""
    labels = run.path("labels")
    missing = [i for i, name in enumerate(inputs.dataset.names) if not (labels / f"{name}.png").exists()]
    work = partial(write_labels, inputs, labels, kind, tuple(args.confident))
    for _ in jobs.run("confident labels", work, missing):
        pass
    data = inputs.dataset.with_masks(labels, skip_bad=args.skip_bad).with_transform(
        train_transform(args.crop_size, None, tuple(args.scales), brightness=args.brightness))
    loader = make_loader(data, args.batch_size, args.workers, seed=args.seed, drop_last=True)
    fit(run, loader, lambda batch: network.loss_terms(batch.images, batch.masks, args.train_radius),
        {"network": network}, network.parameter_groups(args.lr), training_settings(args, f"{kind}_network"))
    save_affinity(network, run.path("affinity.pt"), kind, backbone)
    return network.eval()


def start_affinity(args: argparse.Namespace, kind: str) -> tuple[torch.nn.Module, str | None]:
    """A trained IRN or PSA network and None, or one to train and its backbone's name."""
    path = args.affinity_checkpoint or args.out / "affinity.pt"
    if args.affinity_checkpoint or broadcast(path.exists() and not args.overwrite):
        return load_affinity(path, kind), None
    seed_everything(args.seed)
    network, backbone = build_affinity(kind, args.backbone, start_weights(args))
    if args.crop_size < (least := least_crop(kind, backbone, args.train_radius)):
        raise InputError(f"--crop-size {args.crop_size}: {kind} with --train-radius {args.train_radius} "
                         f"takes {least} at least")
    return network, backbone


def best_thresholds(run: Run, inputs: TaggedCams, scored: Container[str], stages: list,
                    jobs: ImageJobs) -> tuple[float, float]:
    """Background thresholds of best mIoU of refined maps and of CAMs; without masks the paper's for both.

    The masks are those of images that are `scored`.
    They are kept in thresholds.json, so that a run that goes on does not search again.
    """
    stored, dataset = run.path("thresholds.json"), inputs.dataset
    if not broadcast(stored.exists()):
        masked = [i for i, name in enumerate(dataset.names) if name in scored and dataset.has_mask(i)]
        if not masked:
            print(f"--threshold auto: no masks, so the paper's {PAPER_THRESHOLD}")
            return PAPER_THRESHOLD, PAPER_THRESHOLD
        tables = jobs.total("thresholds", partial(threshold_tables, inputs, stages), masked)
        names = ["background", *dataset.classes]
        write_json([miou_curve(table, THRESHOLDS, names)["best"] for table in tables], stored)
        barrier()
    with input_errors(f"{stored}: damaged, delete it to search again: ", ValueError, TypeError, KeyError):
        refined, cams = json.loads(stored.read_text())
        print(f"--threshold auto: {refined['threshold']:.2f} (mIoU {refined['miou']:.2f} before CRF, "
              f"segments), for CAMs alone {cams['threshold']:.2f}")
        return refined["threshold"], cams["threshold"]


def report(run: Run, total: Scored, names: list[str]) -> None:
    """Print and keep mIoU before and after refinement, and how many pixels it changed."""
    figures = {"images": total.images, "changed": 100 * total.changed / total.pixels}
    print(f"{total.images} masks in {run.path('masks')}; refinement changed {figures['changed']:.2f} % "
          "of the pixels")
    if total.scored:
        after, before = scores(total.after), scores(total.before)
        figures |= {**class_figures(total.after, names), "cam_miou": float(before["miou"])}
        print(f"mIoU {after['miou']:.2f} (CAMs alone {before['miou']:.2f}) over {after['classes']} classes "
              f"that occur, {total.scored} images with masks")
    else:
        print("no masks: no mIoU")
    run.result(**figures)


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "make_pseudo")
    device, kind = pick_device(args.device), check_stages(
        args.refine, args.segments is not None and args.segment_rule == "fma")
    dataset = open_dataset(args)
    inputs = TaggedCams(dataset, args.cams or stage_folder(args.runs, args.dataset, "train_prompt") / "cams")
    jobs = ImageJobs(dataset.names, args.workers, args.skip_bad, device.type)
    jobs.leave_out(inputs.missing(args.segments))
    scored = set(open_scored(args, dataset).names)
    network, untrained = start_affinity(args, kind) if kind else (None, None)
    args.resume = broadcast(not args.overwrite and (args.out / "args.json").exists())
    run = start_run(args, dataset, cams=inputs.cams, segments=args.segments, weights=start_weights(args),
                    affinity_checkpoint=args.affinity_checkpoint)
    print(f"{args.dataset} {args.split}: {len(dataset)} images, CAMs of {inputs.cams}, "
          f"--refine {' '.join(args.refine)}; writing {run.out}")

    if untrained:
        network = train_affinity(args, run, inputs, kind, network.to(device), untrained, jobs).cpu()
    walk = Walk(args.radius, args.beta, args.exp_times)
    stages = [build_stage(name, walk=walk, color_stride=args.color_stride, pad_to=args.crop_size,
                          network=network, device=device) for name in args.refine if name != "none"]
    if args.threshold == "auto":
        walks = [stage for stage in stages if not stage.takes_background]
        backgrounds = tuple(map(Constant, best_thresholds(run, inputs, scored, walks, jobs)))
    else:
        backgrounds = (Alpha(args.alpha) if args.threshold == "alpha" else Constant(args.threshold),) * 2
    if args.segments:
        stages.append(Paint(args.segments, args.segment_power) if args.segment_rule == "fma" else
                      Snap(args.segments, args.segment_inside, args.segment_cover))
    work = partial(write_pseudo, inputs, stages, backgrounds, run.path("masks"), scored)
    total = jobs.total("pseudo masks", work, range(len(dataset)))
    if total is None:
        raise InputError(f"{inputs.cams}: no usable CAM file for any image of {args.split}")
    report(run, Scored(*total), ["background", *dataset.classes])
    if args.layout and is_main():
        write_layout(args.layout, dataset, run.path("masks"), run.path(args.layout))
    write_report(run.out, "make_pseudo", StageOutputs(dataset, inputs.cams, run.path("masks")))
    if jobs.failures or dataset.skipped:
        print(f"skipped {len(jobs.failures) + len(dataset.skipped)} bad images, named above", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
