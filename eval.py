"""Score CAM folders, pseudo masks or predictions against true masks; compare folders, draw pictures."""
import argparse
import csv
import signal
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # until `run_script`, Ctrl-C ends this without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np

from clipwsss.datasets import TagDataset
from clipwsss.datasets.jobs import ImageJobs
from clipwsss.distributed import is_main
from clipwsss.errors import InputError, run_script
from clipwsss.files import atomic_path, write_json
from clipwsss.flags import file_to_write, real, whole
from clipwsss.options import open_dataset, parse, run_flags, script_parser, stage_folder
from clipwsss.pictures import contact_sheet, overlay, save
from clipwsss.report.charts import confusion_picture
from clipwsss.report.metrics import mean_present, scores
from clipwsss.report.page import compare
from clipwsss.report.scoring import (THRESHOLDS, CamFolder, Folder, LabelFolder, Tally, by_class, miou_curve,
                                     print_curve, score)
from clipwsss.run import refuse_inside

DEFAULTS = ((CamFolder, "train_cam", "cams"), (CamFolder, "train_prompt", "cams"),
            (LabelFolder, "make_pseudo", "masks"), (LabelFolder, "train_seg", "predictions"))
COLUMNS = ("iou", "precision", "recall", "boundary")


class Result(NamedTuple):
    """A folder (CAMs: with their best threshold), its counts, their scores by class, the report for JSON."""
    folder: Folder
    tally: Tally
    scores: dict
    report: dict


def get_parser() -> argparse.ArgumentParser:
    """Flags; without --cams and --masks the data set's default folders that fit the split are scored."""
    parser = script_parser(__doc__, "python eval.py --dataset voc12 --data-root VOC2012 --split val",
                           ("cams", "masks", "boundary", "report", "json", "per_image", "confusion",
                            "pictures"))
    add = parser.add_argument_group("folders to score").add_argument
    add("--cams", type=Path, nargs="+", default=[], metavar="DIR",
        help="folders of CAM files (ours, IRN's, PSA's)")
    add("--masks", type=Path, nargs="+", default=[], metavar="DIR",
        help="folders of label maps (PNG): pseudo masks or predictions")
    add("--thresholds", type=real(0, 1), nargs="+", default=THRESHOLDS, metavar="T",
        help="background scores to try on CAMs")
    add("--boundary", action="store_true", help="also boundary IoU (bands of 2%% of the image diagonal)")
    add = parser.add_argument_group("outputs").add_argument
    add("--report", type=Path, nargs="+", metavar="RUN", help="only put these finished runs side by side, in "
        "OUT/report.html")
    add("--json", type=file_to_write(".json"), metavar="FILE", help="write the figures here")
    add("--per-image", type=file_to_write(".csv"), metavar="FILE",
        help="write every image's scores, worst first, as CSV")
    add("--confusion", action="store_true", help="draw a confusion matrix per folder into OUT")
    add("--pictures", type=whole(0), default=0, metavar="N",
        help="draw overlays of the first N images into OUT/pictures")
    run_flags(parser)
    return parser


def chosen_folders(args: argparse.Namespace, dataset: TagDataset) -> list[Folder]:
    """The folders of --cams and --masks, or the default outputs that hold this split's images."""
    if args.cams or args.masks:
        return [*map(CamFolder, args.cams), *map(LabelFolder, args.masks)]
    places = [kind(stage_folder(args.runs, args.dataset, stage) / name) for kind, stage, name in DEFAULTS]
    folders = [item for item in places if item.path.is_dir() and not item.names().isdisjoint(dataset.names)]
    if not folders:
        raise InputError(f"no files of split {args.split} in {', '.join(str(item.path) for item in places)}: "
                         "give --cams or --masks")
    return folders


def evaluate(dataset: TagDataset, folder: Folder, args: argparse.Namespace) -> Result:
    """Score one folder: a CAM's threshold curve first, then label maps where details are asked for."""
    names, jobs = ["background", *dataset.classes], ImageJobs(dataset.names, args.workers, args.skip_bad)
    curve = None
    if isinstance(folder, CamFolder):
        tally = score(dataset, folder, jobs, args.thresholds)
        curve = miou_curve(tally.confusion, args.thresholds, names)
        best = curve["curve"].index(curve["best"])
        folder = folder._replace(threshold=curve["best"]["threshold"])
        tally = tally._replace(confusion=tally.confusion[best])
    if curve is None or args.boundary or args.per_image:
        tally = score(dataset, folder, jobs, boundary=args.boundary)
    curve = curve or miou_curve(tally.confusion[None], [None], names)
    figures = scores(tally.confusion)
    if args.boundary:
        figures["boundary"] = scores(tally.boundary)["iou"][:-1]
    return Result(folder, tally, figures, report_of(folder, tally.images, curve, figures, names))


def report_of(folder: Folder, images: int, curve: dict, figures: dict, names: list[str]) -> dict:
    """One folder's figures for JSON, in percent."""
    report = {"folder": str(folder.path), "images": images, "classes": int(figures["classes"]), **curve,
              "accuracy": round(float(figures["accuracy"]), 4)}
    for key, by_name, mean in (("precision", "precision", "mean_precision"),
                               ("recall", "recall", "mean_recall"),
                               ("boundary", "boundary_iou", "boundary_miou")):
        if key in figures:
            report[by_name] = by_class(figures[key], names)
            report[mean] = round(float(mean_present(figures[key])), 4)
    return report


def print_result(result: Result, names: list[str]) -> None:
    """One folder's table: the curve of CAMs, then every class that occurs."""
    folder, _, figures, report = result
    what = "label maps" if folder.threshold is None else "CAMs"
    print(f"\n{folder.path}: {what} of {report['images']} images, {report['classes']} classes occur")
    if folder.threshold is not None:
        print_curve(report["curve"])
        print(f"best threshold {folder.threshold:g}:")
    width = max(map(len, names)) + 2
    columns = [key for key in COLUMNS if key in figures]
    print(" " * width + "".join(f"{key:>11}" for key in columns))
    for index, name in enumerate(names):
        if np.isfinite(figures["iou"][index]):
            line = "".join(f"{figures[key][index]:11.2f}" for key in columns)
            print(f"{name:<{width}}{line.replace('nan', '  -')}")
    print(f"{'mean':<{width}}" + "".join(f"{mean_present(figures[key]):11.2f}" for key in columns))
    print(f"pixel accuracy {report['accuracy']:.2f}")


def print_comparison(results: list[Result], names: list[str]) -> None:
    """All folders in one summary; two of them also side by side with the difference per class."""
    print("\n mIoU  accuracy  threshold  folder")
    for result in results:
        threshold = "-" if result.folder.threshold is None else f"{result.folder.threshold:g}"
        print(f"{result.report['best']['miou']:5.2f} {result.report['accuracy']:9.2f} {threshold:>10}  "
              f"{result.folder.path}")
    if len(results) == 2:
        first, second = (np.append(result.scores["iou"], result.scores["miou"]) for result in results)
        width = max(map(len, names)) + 2
        print(f"\n{'IoU':<{width}}    first   second  second - first")
        for name, before, after in zip([*names, "mean"], first, second):
            if np.isfinite(before) or np.isfinite(after):
                line = f"{name:<{width}}{before:9.2f}{after:9.2f}{after - before:+16.2f}"
                print(line.replace("+nan", "   -").replace("nan", "  -"))


def write_csv(path: Path, results: list[Result]) -> None:
    """Scores of every image, worst first, of all folders."""
    rows = [(str(result.folder.path), *row) for result in results for row in result.tally.per_image]
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["folder", "image", "miou", "accuracy"])
        for folder, name, miou, accuracy in sorted(rows, key=lambda row: row[2]):
            writer.writerow([folder, name, f"{miou:.2f}", f"{accuracy:.2f}"])


def labels_of(folders: list[Folder]) -> list[str]:
    """Short distinct names of folders, for files and titles."""
    short = ["-".join(folder.path.absolute().parts[-2:]) for folder in folders]
    return [f"{name}-{index + 1}" if short.count(name) > 1 else name for index, name in enumerate(short)]


def draw(dataset: TagDataset, folders: list[Folder], out: Path, count: int) -> None:
    """Write OUT/pictures/NAME.png for the first images: image, every folder's overlay, truth."""
    titles = ["image", *labels_of(folders)]
    held = [folder.names() for folder in folders]
    indices = [i for i, name in enumerate(dataset.names) if all(name in names for names in held)][:count]
    for index in indices:
        name, image, size = dataset.names[index], dataset.load_image(index), dataset.image_size(index)
        maps = [folder.labels(name, size) for folder in folders]
        truth = dataset.load_mask(index) if dataset.has_masks else None
        row = [image] + [overlay(image, item, dataset.palette) for item in [*maps, truth] if item is not None]
        sheet = contact_sheet([row], titles + ["truth"] * (truth is not None), [name], cell=320)
        save(sheet, out / f"{name}.png")
    print(f"{len(indices)} pictures in {out}")


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "eval")
    if args.report:
        compare(args.report, args.out / "report.html")
        print(f"{len(args.report)} runs side by side: {args.out / 'report.html'}")
        return 0
    dataset = open_dataset(args)
    names = ["background", *dataset.classes]
    drawn = args.out / "pictures" if args.pictures or args.confusion else None
    for flag, path in (("--json", args.json), ("--per-image", args.per_image), ("--out", drawn)):
        if path:
            refuse_inside(flag, path, dataset.folders())
    folders = chosen_folders(args, dataset)
    results = [evaluate(dataset, folder, args) for folder in folders] if dataset.has_masks else []
    if not is_main():
        return 0
    if not results:
        print(f"{args.data_root}, split {args.split}: no masks, so no mIoU")
    for result in results:
        print_result(result, names)
    if len(results) > 1:
        print_comparison(results, names)
    if args.json:
        empty = {"images": 0, "classes": 0, "curve": [], "best": None}
        reports = [result.report for result in results] or [empty]
        write_json(reports[0] if len(reports) == 1 else {"runs": reports}, args.json)
    if args.per_image and results:
        write_csv(args.per_image, results)
    if args.confusion:
        for label, result in zip(labels_of([result.folder for result in results]), results):
            path = args.out / f"confusion-{label}.png"
            save(confusion_picture(result.tally.confusion, names), path)
            print(f"confusion matrix in {path}")
    if args.pictures:
        draw(dataset, [result.folder for result in results] or folders, args.out / "pictures", args.pictures)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
