"""Score CAMs, pseudo masks or predictions against true masks, compare folders and draw pictures."""
import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipwsss.cams.cam_files import list_cams
from clipwsss.datasets import TagDataset
from clipwsss.datasets.jobs import ImageJobs
from clipwsss.distributed import rank
from clipwsss.errors import InputError, run_script
from clipwsss.files import write_json, write_text
from clipwsss.flags import file_to_write, real, whole
from clipwsss.options import open_dataset, parse, run_flags, script_parser
from clipwsss.pictures import contact_sheet, overlay, save
from clipwsss.report.charts import confusion_picture
from clipwsss.report.metrics import scores
from clipwsss.report.page import compare
from clipwsss.report.scoring import (CAM_THRESHOLD, THRESHOLDS, ImageScore, by_class, list_label_maps,
                                     miou_curve, print_curve, read_labels, score_cams, score_label_maps,
                                     worst_first)
from clipwsss.run import refuse_overlap

CELL = 320  # side in pixels of a picture of --pictures


class FolderScores(NamedTuple):
    """How well one folder agrees with the true masks.

    threshold: the background threshold of best mIoU for a folder of CAMs, None for a folder of label maps.
    confusion: int64 [n,n], for CAMs at that threshold. image_scores: the scores of each image; empty for CAMs
    without --per-image. report: the folder's figures for JSON, in percent.
    """
    folder: Path
    threshold: float | None
    confusion: NDArray
    image_scores: list[ImageScore]
    report: dict


def get_parser() -> argparse.ArgumentParser:
    """The script's flags."""
    parser = script_parser(__doc__, "python eval.py --dataset voc12 --data-root VOCdevkit/VOC2012 "
                           "--split val",
                           ("cams", "masks", "report", "json", "per_image", "confusion", "pictures"))
    add = parser.add_argument_group("folders to score (default: all outputs of the other scripts in "
                                    "RUNS/DATASET that hold images of the split)").add_argument
    add("--cams", type=Path, nargs="+", metavar="DIR",
        help="folders of CAM files, written by this library, by IRN or by PSA")
    add("--masks", type=Path, nargs="+", metavar="DIR",
        help="folders of label maps NAME.png: pseudo masks or predictions")
    add("--thresholds", type=real(0, 1), nargs="+", default=THRESHOLDS, metavar="T",
        help="background thresholds at which CAMs are scored; the one of highest mIoU is reported in detail "
        "(default: 0.01 to 0.99 in steps of 0.01, of which every fifth is printed)")
    add = parser.add_argument_group("outputs").add_argument
    add("--report", type=Path, nargs="+", metavar="RUN",
        help="write OUT/report.html, which shows these finished runs side by side, and score nothing")
    add("--json", type=file_to_write(".json"), metavar="FILE", help="write the scores to this JSON file")
    add("--per-image", type=file_to_write(".csv"), metavar="FILE",
        help="write the scores of each image to this CSV file, the lowest mIoU first")
    add("--confusion", action="store_true", help="draw the confusion matrix of each folder into OUT")
    add("--pictures", type=whole(0), default=0, metavar="N",
        help="draw the label maps of the first N images into OUT/pictures")
    run_flags(parser)
    return parser


def chosen_folders(args: argparse.Namespace, dataset: TagDataset) -> tuple[list[Path], list[Path]]:
    """The folders of --cams and of --masks; without both, the stages' outputs with images of the split.

    InputError: no stage has written any, or the folder of a stage is empty.
    """
    if args.cams or args.masks:
        return args.cams or [], args.masks or []
    cams = [args.runs / args.dataset / "train_cam" / "cams",
            args.runs / args.dataset / "train_prompt" / "cams"]
    masks = [args.runs / args.dataset / "make_pseudo" / "masks",
             args.runs / args.dataset / "train_seg" / "predictions"]
    split = set(dataset.names)
    cams_found = [folder for folder in cams if folder.is_dir() and split.intersection(list_cams(folder))]
    masks_found = [folder for folder in masks
                   if folder.is_dir() and split.intersection(list_label_maps(folder))]
    if not cams_found and not masks_found:
        raise InputError(f"no CAMs or masks of split {args.split} in {', '.join(map(str, [*cams, *masks]))}; "
                         "give --cams or --masks")
    return cams_found, masks_found


def evaluate_cams(dataset: TagDataset, folder: Path, jobs: ImageJobs, thresholds: Sequence[float],
                  per_image: bool) -> FolderScores:
    """Score a folder of CAM files at all thresholds, and in detail at the best one."""
    names = ["background", *dataset.classes]
    tables, images = score_cams(dataset, folder, jobs, thresholds)
    curve = miou_curve(tables, thresholds, names)
    best = curve["curve"].index(curve["best"])
    threshold = curve["best"]["threshold"]
    image_scores = []
    if per_image:
        _, image_scores = score_label_maps(dataset, folder, jobs, threshold)
    report = folder_report(folder, images, curve, tables[best], names)
    return FolderScores(folder, threshold, tables[best], image_scores, report)


def evaluate_label_maps(dataset: TagDataset, folder: Path, jobs: ImageJobs) -> FolderScores:
    """Score a folder of label maps."""
    names = ["background", *dataset.classes]
    table, image_scores = score_label_maps(dataset, folder, jobs)
    curve = miou_curve(table[None], [None], names)  # one point without a threshold
    report = folder_report(folder, len(image_scores), curve, table, names)
    return FolderScores(folder, None, table, image_scores, report)


def folder_report(folder: Path, images: int, curve: dict, table: NDArray, names: list[str]) -> dict:
    """One folder's figures for JSON, in percent; the scores of classes that do not occur are left out."""
    figures = scores(table)
    return {"folder": str(folder), "images": images, "classes": int(figures["classes"]), **curve,
            "accuracy": round(float(figures["accuracy"]), 4),
            "precision": by_class(figures["precision"], names),
            "mean_precision": round(float(figures["mean_precision"]), 4),
            "recall": by_class(figures["recall"], names),
            "mean_recall": round(float(figures["mean_recall"]), 4)}


def print_result(result: FolderScores, names: list[str]) -> None:
    """Print one folder's table: for CAMs the curve, then each class that occurs."""
    figures = scores(result.confusion)
    images = result.report["images"]
    classes = result.report["classes"]
    what = "label maps" if result.threshold is None else "CAMs"
    print(f"\n{result.folder}: {what} of {images} images, {classes} classes occur")
    if result.threshold is not None:
        print_curve(result.report["curve"])
        print(f"best threshold {result.threshold:g}:")
    width = max(map(len, names)) + 2
    columns = [figures["iou"], figures["precision"], figures["recall"]]
    means = [figures["miou"], figures["mean_precision"], figures["mean_recall"]]
    print(f"{'':<{width}}        iou  precision     recall")
    for index, name in enumerate(names):
        if np.isfinite(figures["iou"][index]):
            line = "".join(f"{column[index]:11.2f}" for column in columns)
            print(f"{name:<{width}}{line.replace('nan', '  -')}")
    print(f"{'mean':<{width}}" + "".join(f"{mean:11.2f}" for mean in means).replace("nan", "  -"))
    print(f"pixel accuracy {result.report['accuracy']:.2f}".replace("nan", "-"))


def print_comparison(results: list[FolderScores], names: list[str]) -> None:
    """Print a line for each folder; of two folders, also the IoU of each class side by side."""
    print("\n mIoU  accuracy  threshold  folder")
    for result in results:
        threshold = "-" if result.threshold is None else f"{result.threshold:g}"
        figures = f"{result.report['best']['miou']:5.2f} {result.report['accuracy']:9.2f}"
        print(f"{figures.replace('nan', '  -')} {threshold:>10}  {result.folder}")
    if len(results) != 2:
        return
    first = scores(results[0].confusion)
    second = scores(results[1].confusion)
    rows = [*zip(names, first["iou"], second["iou"]), ("mean", first["miou"], second["miou"])]
    width = max(map(len, names)) + 2
    print(f"\n{'IoU':<{width}}    first   second  second - first")
    for name, before, after in rows:
        if np.isfinite(before) or np.isfinite(after):
            line = f"{name:<{width}}{before:9.2f}{after:9.2f}{after - before:+16.2f}"
            print(line.replace("+nan", "   -").replace("nan", "  -"))


def write_csv(path: Path, results: list[FolderScores]) -> None:
    """Write the scores of all folders' images, the lowest mIoU first."""
    rows = [(result.folder, *score) for result in results for score in result.image_scores]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["folder", "image", "miou", "accuracy"])
    for folder, name, miou, accuracy in sorted(rows, key=lambda row: worst_first(row[2])):
        writer.writerow([folder, name, f"{miou:.2f}", f"{accuracy:.2f}"])
    write_text(table.getvalue(), path)


def short_names(folders: list[Path]) -> list[str]:
    """A distinct short name of each folder, its last two parts, for the names of files and for titles."""
    short = ["-".join(folder.absolute().parts[-2:]) for folder in folders]
    return [f"{name}-{number}" if short.count(name) > 1 else name
            for number, name in enumerate(short, start=1)]


def draw_pictures(dataset: TagDataset, folders: list[tuple[Path, float | None]], out: Path,
                  count: int) -> None:
    """Write OUT/NAME.png of the first images that all folders hold: image, each folder's label map, truth.

    folders: each with its background threshold, None for a folder of label maps.
    """
    titles = ["image", *short_names([folder for folder, _ in folders])]
    in_all = set(dataset.names)
    for folder, threshold in folders:
        in_all.intersection_update(list_label_maps(folder) if threshold is None else list_cams(folder))
    indices = [index for index, name in enumerate(dataset.names) if name in in_all][:count]
    for index in indices:
        name = dataset.names[index]
        image = dataset.load_image(index)
        size = dataset.sizes[index]
        row = [image]
        for folder, threshold in folders:
            row.append(overlay(image, read_labels(folder, name, size, threshold), dataset.palette))
        shown_titles = titles
        if dataset.masked[index]:
            row.append(overlay(image, dataset.load_mask(index), dataset.palette))
            shown_titles = [*titles, "truth"]
        save(contact_sheet([row], shown_titles, [name], cell=CELL), out / f"{name}.png")
    print(f"{len(indices)} pictures in {out}")


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "eval")
    if args.report:
        compare(args.report, args.out / "report.html")
        print(f"{len(args.report)} runs side by side: {args.out / 'report.html'}")
        return 0
    dataset = open_dataset(args)
    names = ["background", *dataset.classes]
    if args.json:
        refuse_overlap("--json", args.json, dataset.folders)
    if args.per_image:
        refuse_overlap("--per-image", args.per_image, dataset.folders)
    if args.pictures or args.confusion:
        refuse_overlap("--out", args.out / "pictures", dataset.folders)

    cam_folders, mask_folders = chosen_folders(args, dataset)
    results = []
    if dataset.has_masks:
        for folder in cam_folders:
            jobs = ImageJobs(dataset.names, args.workers, args.skip_bad)
            results.append(evaluate_cams(dataset, folder, jobs, args.thresholds, bool(args.per_image)))
        for folder in mask_folders:
            jobs = ImageJobs(dataset.names, args.workers, args.skip_bad)
            results.append(evaluate_label_maps(dataset, folder, jobs))
    if rank() > 0:
        return 0

    for result in results:
        print_result(result, names)
    if not results:
        print(f"{args.data_root}, split {args.split}: there are no masks, so no mIoU is computed")
    if len(results) > 1:
        print_comparison(results, names)
    if args.json:
        reports = [result.report for result in results]
        if not reports:
            reports = [{"images": 0, "classes": 0, "curve": [], "best": None}]
        write_json(reports[0] if len(reports) == 1 else {"runs": reports}, args.json)
    if args.per_image and results:
        write_csv(args.per_image, results)
    if args.confusion:
        for label, result in zip(short_names([result.folder for result in results]), results):
            path = args.out / f"confusion-{label}.png"
            save(confusion_picture(result.confusion, names), path)
            print(f"confusion matrix in {path}")
    if args.pictures:
        folders = [(result.folder, result.threshold) for result in results]
        if not results:
            folders = [*((folder, CAM_THRESHOLD) for folder in cam_folders),
                       *((folder, None) for folder in mask_folders)]
        draw_pictures(dataset, folders, args.out / "pictures", args.pictures)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
