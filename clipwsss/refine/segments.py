"""Class-agnostic segments: their files, SAM's for a whole data set, and label maps painted from them.

    python -m clipwsss.refine.segments --data-root VOC2012 --sam facebook/sam-vit-huge --out segments

The command writes the segments of each image as refine/sam.py finds them (optional package transformers). The
same command continues where it was interrupted. `torchrun --nproc_per_node=N -m clipwsss.refine.segments`
shares the images among N GPUs.
"""
import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ..datasets import DATASETS, TagDataset, build_dataset
from ..datasets.coco import decode_mask, encode_mask
from ..datasets.image_files import MOST_PIXELS, files_of, open_file
from ..datasets.jobs import ImageJobs
from ..errors import InputError, run_script
from ..files import existing, read_json, read_text, to_json, write_text
from ..flags import Parser, whole
from ..presets import DATA_SET_VALUES
from ..run import refuse_overlap
from ..training import pick_device
from .sam import load_sam, segment_image

UNKNOWN = -1  # the level of a segment whose file states none
WHOLE = 2  # the highest of SAM's three levels
MADE_WITH = "made_with.txt"  # in a folder of segments: the settings that they were made with


class Segment(NamedTuple):
    """A class-agnostic region.

    mask: bool [H, W]. level: of SAM's three answers to a point, 0 is a part of a part and 2 the whole.
    confidence: SAM's own estimate of the mask's IoU with the true one, 1 where nothing is known.
    """
    mask: np.ndarray
    level: int = 0
    confidence: float = 1.0


def paint(maps: np.ndarray, segments: Sequence[Segment], power: float = 0.6) -> np.ndarray:
    """Labels uint8 [H, W] painted segment by segment: 0 for the background, or 1..k for one of k maps.

    maps: float32 [k, H, W]. A segment's score of a map is the mean of the map, with negative values cut to
    zero. The scores of each map are scaled over the image's segments by (x - min) / (max - min), and the
    background scores (1 - largest score)^power. A segment's label has the highest score. Segments are painted
    by rising level and then by rising score; pixels of no segment are background. Source: FMA-WSSS (arXiv
    2312.03585; gather_norm_bg_argmax in its release).
    """
    painted = np.zeros(maps.shape[1:], np.uint8)
    segments = [segment for segment in segments if segment.mask.any()]
    if not segments:
        return painted
    rectified = np.maximum(maps, 0).reshape(len(maps), -1)
    scores = np.stack([rectified[:, segment.mask.ravel()].mean(1) for segment in segments], 1)
    low = scores.min(1, keepdims=True)
    high = scores.max(1, keepdims=True)
    scores = (scores - low) / (high - low + 1e-7)
    background = (1 - scores.max(0, keepdims=True)) ** power
    scores = np.concatenate([background, scores])
    labels = scores.argmax(0)
    best = scores.max(0)
    order = sorted(range(len(segments)), key=lambda index: (segments[index].level, best[index]))
    for index in order:
        painted[segments[index].mask] = labels[index]
    return painted


def read_segments(folder: Path | str, name: str, size: tuple[int, int]) -> list[Segment]:
    """The segments of one image of this size (H, W), from FOLDER/NAME.png or FOLDER/NAME.json.

    PNG: a label map of 8 or 16 bits, in which every value but 0 is a segment. JSON: a list of regions, or a
    dictionary with this list under "annotations" (SA-1B). A region has COCO's "segmentation" (run lengths or
    polygons), perhaps FMA-WSSS' "level" and SAM's "predicted_iou". Without levels, `nest` counts them.
    InputError names a bad file.
    """
    png = existing(Path(folder) / f"{name}.png")
    regions = existing(Path(folder) / f"{name}.json")
    if png.is_file() and regions.is_file():
        raise InputError(f"{png} and {regions.name}: both exist; keep one of them")
    if png.is_file():
        return _read_png(png, tuple(size))
    if regions.is_file():
        return _read_json(regions, tuple(size))
    raise InputError(f"{png} (or .json): no such file of segments")


def _read_png(path: Path, size: tuple[int, int]) -> list[Segment]:
    """The segments of a PNG label map of this size (H, W), by rising value; InputError for a bad file."""
    with open_file(path, "label map of segments", MOST_PIXELS) as file:
        labels = np.array(file)
        mode = file.mode
    if labels.ndim != 2:
        raise InputError(f"{path}: a label map of segments has one channel, this image is {mode}")
    if labels.shape != size:
        raise InputError(f"{path}: the segments are {list(labels.shape)}, their image is {list(size)} (H, W)")
    return [Segment(labels == value) for value in np.unique(labels) if value != 0]


def _read_json(path: Path, size: tuple[int, int]) -> list[Segment]:
    """The segments of a JSON file of regions for an image of this size (H, W); InputError for a bad file."""
    regions = read_json(path)
    if isinstance(regions, dict):
        regions = regions.get("annotations")
    if not isinstance(regions, list):
        raise InputError(f"{path}: not a list of segments")
    segments = []
    try:
        for region in regions:
            mask = decode_mask(region["segmentation"], size)
            level = int(region.get("level", UNKNOWN))
            segments.append(Segment(mask, level, float(region.get("predicted_iou", 1.0))))
    except (ValueError, TypeError, KeyError) as error:
        number = len(segments) + 1
        raise InputError(f"{path}: region {number} is no segment of this image ({error})") from error
    if any(segment.level < 0 for segment in segments):
        return nest(segments)
    return segments


def nest(segments: Sequence[Segment], share: float = 0.9) -> list[Segment]:
    """The segments with new levels: the number of smaller segments that lie in a segment, at most 2.

    A segment lies in a larger one that has at least `share` of its pixels. The count stops at SAM's highest
    level: otherwise a sofa of many cushions would always be painted over the dog that lies on it.
    """
    flat = np.stack([segment.mask.ravel() for segment in segments]).astype(np.float32)
    common = flat @ flat.T
    sizes = flat.sum(1)
    # inside[i, j]: at least `share` of segment j lies in segment i, and i is the larger one.
    inside = (common >= share * sizes) & (sizes[:, None] > sizes)
    levels = inside.sum(1).clip(max=WHOLE)
    return [segment._replace(level=int(level)) for segment, level in zip(segments, levels)]


def write_segments(folder: Path | str, name: str, segments: Iterable[Segment]) -> None:
    """Write segments, which may overlap, as FOLDER/NAME.json in SAM's form (COCO's run lengths).

    A segment's confidence is written as SAM's "predicted_iou", its level as FMA-WSSS' "level"; a level
    UNKNOWN is left out.
    """
    regions = []
    for segment in segments:
        region = {"segmentation": encode_mask(np.asarray(segment.mask, bool)),
                  "predicted_iou": round(float(segment.confidence), 4)}
        if segment.level != UNKNOWN:
            region["level"] = int(segment.level)
        regions.append(region)
    write_text(to_json(regions), Path(folder) / f"{name}.json")


def get_parser() -> Parser:
    """The command's flags."""
    parser = Parser(prog="python -m clipwsss.refine.segments", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", choices=tuple(DATASETS), default="voc12", help="data set (folder: your own images)")
    add("--data-root", type=Path, required=True, help="folder of the data set")
    add("--split", help="split whose images are segmented (default: that of make_pseudo.py)")
    add("--skip-bad", action="store_true", help="leave out and list images that cannot be read")
    add("--sam", default="facebook/sam-vit-huge",
        help="SAM: a name on the hub of Hugging Face, or a folder of save_pretrained")
    add("--out", type=Path, default=Path("segments"),
        help="folder of the segments, for make_pseudo.py --segments")
    add("--points-per-side", type=whole(2, 256), default=32, help="side of the grid of points (FMA-WSSS: 32)")
    add("--points-per-batch", type=whole(1, 65536), default=64,
        help="number of points at a time; fewer take less memory and change no result")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="device to compute on; auto takes CUDA where it is available")
    return parser


def refuse_other_files(folder: Path, settings: str) -> None:
    """InputError where a folder holds files that the command did not write with these settings."""
    has_files = folder.is_dir() and bool(files_of(folder, (".png", ".json")))
    record = folder / MADE_WITH
    if record.is_file():
        before = read_text(record).strip()
        if before != settings:
            raise InputError(f"--out {folder}: holds segments that were made with {before}, now it is "
                             f"{settings}; choose another folder")
    elif has_files:
        raise InputError(f"--out {folder}: holds files that this command did not write; choose another "
                         "folder")


def segment_and_write(model: nn.Module, dataset: TagDataset, args: argparse.Namespace, index: int) -> None:
    """Write the segments of one image to --out."""
    pixels = np.asarray(dataset.load_image(index))
    with torch.inference_mode():
        found = segment_image(model, pixels, args.points_per_side, args.points_per_batch)
    segments = [Segment(mask, level, iou) for mask, level, iou in
                zip(found.masks.numpy(), found.levels.tolist(), found.ious.tolist())]
    write_segments(args.out, dataset.names[index], segments)


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    device = pick_device(args.device)
    split = args.split or DATA_SET_VALUES["make_pseudo"].get(args.dataset, {}).get("split", "train")
    dataset = build_dataset(args.dataset, args.data_root, split, args.skip_bad)
    refuse_overlap("--out", args.out, dataset.folders, args.data_root)
    settings = f"--sam {args.sam} --points-per-side {args.points_per_side}"
    refuse_other_files(args.out, settings)
    model = load_sam(args.sam, device)
    write_text(settings + "\n", args.out / MADE_WITH)
    todo = [index for index, name in enumerate(dataset.names) if not (args.out / f"{name}.json").exists()]
    print(f"{len(dataset)} images, {len(dataset) - len(todo)} of them have their segments already")
    jobs = ImageJobs(dataset.names, skip_bad=args.skip_bad, device=device.type)
    for _ in jobs.run("segments", partial(segment_and_write, model, dataset, args), todo):
        pass
    print(f"written to {args.out}; use them with: python make_pseudo.py --refine none --segments {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
