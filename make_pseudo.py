"""Stage 3: refine class activation maps (random walk, dense CRF, segments) and write pseudo masks."""
import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from clipwsss.refine.affinity import build_affinity, load_affinity, save_affinity
from clipwsss.refine.labels import confident_labels
from clipwsss.cams.files import CamFile, list_cams, read_cam, resize_cam
from clipwsss.datasets import TagDataset, build_dataset
from clipwsss.datasets.base import read_mask
from clipwsss.training import Run, fit, pick_device, seed_everything
from clipwsss.datasets.loaders import make_loader
from clipwsss.files import write_json
from clipwsss.errors import InputError, run_script
from clipwsss.datasets.jobs import ImageJobs
from clipwsss.report.metrics import confusion, scores, threshold_confusions
from clipwsss.options import parse, script_parser, stage_folder, training_flags, training_of
from clipwsss.pictures import colored, contact_sheet, heat, save, write_mask
from clipwsss.refine.stages import Refiner, check_cam
from clipwsss.networks.resnet import BACKBONES
from clipwsss.report.scoring import THRESHOLDS, miou_curve
from clipwsss.datasets.transforms import train_transform

REFINEMENTS = ("none", "crf", "color", "color+crf", "psa", "psa+crf", "irn", "irn+crf")
PAPER_THRESHOLD = 0.25  # IRN's sem_seg_bg_thres


def background_rule(text: str) -> float | str:
    """--threshold: a number in [0, 1), auto or alpha."""
    if text in ("auto", "alpha"):
        return text
    if not 0 <= float(text) < 1:
        raise ValueError(text)
    return float(text)


def get_parser() -> argparse.ArgumentParser:
    """Flags; defaults are IRN's values, --refine and --dataset fill in others, an explicit flag wins."""
    parser = script_parser(__doc__, "python make_pseudo.py --dataset voc12 --data-root VOCdevkit/VOC2012")
    add = parser.add_argument
    add("--refine", choices=REFINEMENTS, default="irn",
        help="random walk inside IRN's boundaries, by PSA's affinities or by colour; dense CRF")
    add("--cams", type=Path, help="folder of CAM files, ours or IRN's (default: train_prompt's)")
    add("--affinity-checkpoint", type=Path,
        help="trained irn or psa network (or IRN's res50_irn.pth), which spares the training")
    add("--threshold", type=background_rule, default=PAPER_THRESHOLD, metavar="T|auto|alpha",
        help="background score; auto: the best by mIoU before CRF and segments where there are masks; "
        "alpha: PSA's background map, which walks too")
    add("--alpha", type=float, default=16.0, help="exponent of PSA's background map (1 - max CAM)^alpha")
    add("--radius", type=int, default=5, help="pixels closer than this have an affinity")
    add("--beta", type=float, default=10.0, help="power of the affinities")
    add("--exp-times", type=int, default=8, help="the walk takes 2 to this many steps")
    add("--color-stride", type=int, default=4, help="image size over the grid of the colour walk")
    add("--confident", type=float, nargs=2, default=(0.30, 0.05), metavar=("FG", "BG"),
        help="background scores that sure foreground exceeds and sure background does not (CLIMS 0.3 0.1); "
        "psa: the two exponents of its background map")
    add("--backbone", choices=BACKBONES, default="resnet50", help="of the affinity network")
    add("--weights", default="imagenet",
        help="its start: imagenet, none, generator (train_prompt's), a file of torchvision or of a generator")
    add("--crop-size", type=int, default=512, help="training crop; irn also pads smaller images to it")
    add("--scales", type=float, nargs=2, default=(0.5, 1.5), metavar=("LO", "HI"), help="training scales")
    add("--brightness", type=float, default=0.0, help="random gain of 1 +- this in training")
    add("--train-radius", type=int, default=10, help="radius of the pairs that training looks at")
    add("--segments", type=Path, help="folder of class-agnostic segments (PNG, SAM's JSON) to snap masks to")
    add("--segment-inside", type=float, default=0.5,
        help="a class takes a segment of which it has more than this share")
    add("--segment-cover", type=float, default=0.85, help="or in which at least this share of the class lies")
    training_flags(parser, resumes=False, batch_size=32, epochs=3, lr=0.1, optimizer="sgd", schedule="poly",
                   weight_decay=1e-4)
    add("--pictures", type=int, default=0, help="draw this many images into pictures.png")
    return parser


class Scored(NamedTuple):
    """One image's outcome: confusions of its mask and CAMs (None without truth), pixels that differ."""
    after: np.ndarray | None
    before: np.ndarray | None
    changed: int
    pixels: int


class Source(NamedTuple):
    """The images and the folder of their CAM files."""
    dataset: TagDataset
    cams: Path

    def read(self, index: int) -> tuple[np.ndarray, CamFile]:
        """Image uint8 [H, W, 3] and its checked CAM file."""
        name = self.dataset.names[index]
        file = check_cam(read_cam(self.cams, name), self.cams / name, self.dataset.image_size(index),
                         len(self.dataset.classes))
        return np.asarray(self.dataset.load_image(index)), file


def write_labels(source: Source, folder: Path, kind: str, confident: tuple[float, float], index: int) -> None:
    """Write one image's confident labels, which an affinity network learns from."""
    image, file = source.read(index)
    labels = confident_labels(image, resize_cam(file, image.shape[:2]), file.keys, *confident, kind)
    write_mask(folder / f"{source.dataset.names[index]}.png", labels, source.dataset.palette)


def threshold_tables(source: Source, refiner: Refiner, index: int) -> np.ndarray:
    """Confusions [2, T, n, n] of one image at every threshold: refined maps, CAMs alone."""
    image, file = source.read(index)
    truth, n = source.dataset.load_mask(index), len(source.dataset.classes) + 1
    return np.stack([threshold_confusions(maps, file.keys, truth, THRESHOLDS, n)
                     for maps in (refiner.maps(image, file), resize_cam(file, truth.shape))])


def write_pseudo(source: Source, refiner: Refiner, plain: Refiner, folder: Path, index: int) -> Scored:
    """Write one image's pseudo mask unless it is there, and score it beside the `plain` mask of its CAMs."""
    dataset, path = source.dataset, folder / f"{source.dataset.names[index]}.png"
    image, file = source.read(index)
    before = plain.mask(image, file)
    if path.exists():
        after = read_mask(path)
    else:
        after = refiner.mask(image, file, dataset.names[index])
        write_mask(path, after, dataset.palette)
    truth, n = dataset.load_mask(index), len(dataset.classes) + 1
    tables = (None, None) if truth is None else (confusion(after, truth, n), confusion(before, truth, n))
    return Scored(*tables, int((after != before).sum()), after.size)


def train_affinity(args: argparse.Namespace, run: Run, source: Source, kind: str, jobs: ImageJobs,
                   device: torch.device) -> torch.nn.Module:
    """Label images where CAMs are sure and train the IRN or PSA network on that; a finished one is loaded."""
    path, labels = run.path("affinity.pt"), run.path("labels")
    if args.affinity_checkpoint or path.exists():
        return load_affinity(args.affinity_checkpoint or path, kind)
    missing = [i for i, name in enumerate(source.dataset.names) if not (labels / f"{name}.png").exists()]
    work = partial(write_labels, source, labels, kind, tuple(args.confident))
    list(jobs.run("confident labels", work, missing))
    seed_everything(args.seed)
    weights = args.weights
    if weights == "generator":
        weights = stage_folder(args.runs, args.dataset, "train_prompt") / "generator.pt"
    network, backbone = build_affinity(kind, args.backbone, weights)
    network.to(device)
    data = source.dataset.with_masks(labels, skip_bad=args.skip_bad).with_transform(
        train_transform(args.crop_size, None, tuple(args.scales), brightness=args.brightness))
    loader = make_loader(data, args.batch_size, args.workers, seed=args.seed, drop_last=True)
    fit(run, loader, lambda batch: network.losses(batch.images, batch.masks, args.train_radius),
        {"network": network}, network.parameter_groups(args.lr), training_of(args, f"{kind} network"))
    if kind == "irn":
        plain = data.with_transform(train_transform(args.crop_size, None, flip=False), masks=False)
        batches = make_loader(plain, args.batch_size, args.workers, shuffle=False)
        network.centre_displacements(batch.images.to(device) for batch in batches)
    save_affinity(network, path, kind, backbone)
    return network.eval()


def best_thresholds(run: Run, source: Source, refiner: Refiner, jobs: ImageJobs) -> tuple[float, float]:
    """Background thresholds of best mIoU of refined maps and of CAMs; without masks the paper's for both.

    They are kept in thresholds.json, so that a run that goes on does not search again.
    """
    stored, dataset = run.path("thresholds.json"), source.dataset
    if not stored.exists():
        known = [i for i in range(len(dataset)) if dataset.has_mask(i)]
        if not known:
            print(f"--threshold auto: no masks, so the paper's {PAPER_THRESHOLD}")
            return PAPER_THRESHOLD, PAPER_THRESHOLD
        tables = sum(jobs.run("thresholds", partial(threshold_tables, source, refiner), known))
        names = ["background", *dataset.classes]
        write_json([miou_curve(table, THRESHOLDS, names)["best"] for table in tables], stored)
    refined, cams = json.loads(stored.read_text())
    print(f"--threshold auto: {refined['threshold']:.2f} (mIoU {refined['miou']:.2f} before CRF, segments), "
          f"for CAMs alone {cams['threshold']:.2f}")
    return refined["threshold"], cams["threshold"]


def report(run: Run, results: list[Scored]) -> None:
    """Print and log mIoU before and after refinement, and how many pixels it changed."""
    values = {"images": len(results),
              "changed": 100 * sum(item.changed for item in results) / sum(item.pixels for item in results)}
    print(f"{len(results)} masks in {run.path('masks')}; refinement changed {values['changed']:.2f} % "
          "of the pixels")
    known = [item for item in results if item.after is not None]
    if known:
        after, before = scores(sum(item.after for item in known)), scores(sum(item.before for item in known))
        values |= {"miou": float(after["miou"]), "cam_miou": float(before["miou"])}
        print(f"mIoU {after['miou']:.2f} (CAMs alone {before['miou']:.2f}) over {after['classes']} classes "
              f"that occur, {len(known)} images with masks")
    else:
        print("no masks: no mIoU")
    run.result(**values)


def draw(run: Run, source: Source, plain: Refiner, indices: list[int]) -> None:
    """pictures.png: image, strongest CAM, mask of the CAMs, pseudo mask and, where there is one, truth."""
    dataset, rows = source.dataset, []
    for index in indices:
        image, file = source.read(index)
        masks = (plain.mask(image, file), read_mask(run.path("masks", f"{dataset.names[index]}.png")),
                 dataset.load_mask(index))
        rows.append([Image.fromarray(image), heat(resize_cam(file, image.shape[:2]).max(0)),
                     *(None if mask is None else colored(mask, dataset.palette) for mask in masks)])
    sheet = contact_sheet(rows, ("image", "CAM", "mask of CAMs", "pseudo mask", "truth"),
                          [dataset.names[index] for index in indices])
    save(sheet, run.path("pictures.png"))


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "make_pseudo")
    device = pick_device(args.device)
    dataset = build_dataset(args.dataset, args.data_root, args.split, skip_bad=args.skip_bad)
    source = Source(dataset, args.cams or stage_folder(args.runs, args.dataset, "train_prompt") / "cams")
    present = set(list_cams(source.cams))
    absent = {i: f"{source.cams / name}.npz (or .npy): no CAM file for this image of {args.split}"
              for i, name in enumerate(dataset.names) if name not in present}
    if absent and not args.skip_bad:
        raise InputError(f"{next(iter(absent.values()))}; {len(absent)} of {len(dataset)} images lack one "
                         "(--skip-bad goes on without)")
    run = Run(args.out, vars(args), resume=not args.overwrite, overwrite=args.overwrite)
    if args.overwrite:
        for old in (*run.out.glob("masks/*.png"), *run.out.glob("labels/*.png"), run.path("affinity.pt"),
                    run.path("thresholds.json")):
            old.unlink(missing_ok=True)
    print(f"{args.dataset} {args.split}: {len(dataset)} images, CAMs of {source.cams}, "
          f"--refine {args.refine}; writing {run.out}")
    jobs = ImageJobs(dataset.names, args.workers, device, args.skip_bad)
    jobs.leave_out(absent)
    walk = args.refine.split("+")[0].replace("crf", "none")
    network = train_affinity(args, run, source, walk, jobs, device).cpu() if walk in ("irn", "psa") else None
    plain = Refiner(threshold=args.threshold, alpha=args.alpha)  # the CAMs alone
    refiner = Refiner(walk, network, device, args.threshold, args.alpha, args.radius, args.beta,
                      args.exp_times, args.color_stride, args.crop_size, args.refine.endswith("crf"),
                      args.segments, args.segment_inside, args.segment_cover)
    if args.threshold == "auto":
        refiner.threshold, plain.threshold = best_thresholds(run, source, refiner, jobs)
    work = partial(write_pseudo, source, refiner, plain, run.path("masks"))
    results = list(jobs.run("pseudo masks", work, range(len(dataset))))
    if not results:
        raise InputError(f"{source.cams}: no usable CAM file for any image of {args.split}")
    report(run, results)
    if args.pictures:
        good = [i for i in range(len(dataset)) if i not in jobs.failures]
        draw(run, source, plain, good[:args.pictures])
    if jobs.failures or dataset.skipped:
        print(f"skipped {len(jobs.failures) + len(dataset.skipped)} bad images, named above", file=sys.stderr)
    return 1 if jobs.failures or dataset.skipped else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
