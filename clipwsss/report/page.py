"""report.html: what a run did, in one file that loads no other file, or several runs side by side.

This module gathers a run's figures, settings and pictures in a JSON object, and `assets/report.html` draws
them. All texts of the object reach that page as plain text, never as markup.
"""
import base64
import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..cams.cam_files import list_cams, read_cam, resize_cam
from ..datasets import TagDataset
from ..datasets.base import read_mask
from ..distributed import is_main
from ..errors import InputError
from ..files import atomic_path
from ..pictures import overlay
from .metrics import confusion, scores
from .scoring import CAM_THRESHOLD, list_label_maps, read_labels

PAGE_TEMPLATE = Path(__file__).parents[1] / "assets" / "report.html"
DATA_ELEMENT = re.compile(r'(<script type="application/json" id="data">)(.*?)(</script>)', re.DOTALL)
FIRST_IMAGES = 4  # images shown from the beginning of the data set; the pages of all runs share them
WORST_IMAGES = 8  # images shown because of their low mIoU
SAMPLED_IMAGES = 200  # images scored, approximately, to find those
PICTURE_SIDE = 320  # the longer side of an image's pictures in pixels
WORD_PICTURE_SIDE = 96  # the longer side of a word's picture
WORDS_SHOWN = 4  # words shown of each class
# For each stage, the stage before it and the flag that names what it reads of that stage.
STAGE_BEFORE = {"train_prompt": ("train_cam", "init"), "make_pseudo": ("train_prompt", "cams"),
                "train_seg": ("make_pseudo", "masks")}
NOT_SETTINGS = {"set_by", "stage", "inputs", "resume", "overwrite", "dry_run", "quiet"}


# ---- pages

def write_report(run: Path, stage: str, dataset: TagDataset, cams: Path | None = None,
                 masks: Path | None = None) -> None:
    """Write RUN/report.html of a finished run from the files in its folder and the images of a data set.

    cams, masks: the folders of CAM files and of label maps whose images are shown, if there are any.
    """
    if is_main():
        gathered = gather_run(run, stage, dataset, cams, masks)
        render({"runs": [gathered], "notes": []}, run / "report.html")
        print(f"report: {run / 'report.html'}")


def compare(runs: Sequence[Path], path: Path, notes: Sequence[str] = ()) -> None:
    """Write one page of several finished runs, read from their own pages, below lines of `notes`.

    InputError names a folder without a report.html.
    """
    gathered = []
    for run in runs:
        gathered += read_report(run / "report.html")["runs"]
    render({"runs": gathered, "notes": list(notes)}, path)


def render(page: dict, path: Path) -> None:
    """Write a page {"runs": [...], "notes": [...]} as HTML; an interruption leaves no partial file."""
    text = json.dumps(page, allow_nan=False).replace("<", "\\u003c")  # no text can end the script element
    html = DATA_ELEMENT.sub(lambda parts: parts[1] + text + parts[3], PAGE_TEMPLATE.read_text())
    with atomic_path(path) as temporary:
        temporary.write_text(html)


def read_report(path: Path) -> dict:
    """The page that `render` wrote; InputError where the file is missing or is no such page."""
    try:
        return json.loads(DATA_ELEMENT.search(path.read_text())[2])
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: no report; every script writes one when it has finished") from error


# ---- what a run recorded

def gather_run(run: Path, stage: str, dataset: TagDataset, cams: Path | None, masks: Path | None) -> dict:
    """The JSON object of one run: everything that its page shows."""
    args = read_json(run / "args.json")
    result = read_json(run / "result.json")
    threshold = result.get("threshold") or CAM_THRESHOLD
    return {
        "name": run.name, "folder": str(run), "stage": stage, "method": args.get("method", ""),
        "command": command_of(stage, args), "settings": settings_of(args), "result": result,
        "before": result_before(run, stage, args), "curves": curves_of(run / "log.jsonl"),
        "files": files_in(run), "classes": ["background", *dataset.classes],
        "palette": dataset.palette[:len(dataset.classes) + 1].tolist(),
        "words": words_of(run / "prompts.json", dataset),
        "pictures": pictures_of(dataset, cams, masks, threshold)}


def read_json(path: Path) -> dict:
    """The JSON object of a file, with null in place of NaN and infinity, which browsers do not read."""
    return json.loads(path.read_text(), parse_constant=lambda _: None)


def command_of(stage: str, args: dict) -> str:
    """The command line that repeats a run: the flags that its user gave, without those of one start only."""
    words = ["python", f"{stage}.py"]
    for name, source in args["set_by"].items():
        if source != "the command line" or name in NOT_SETTINGS:
            continue
        flag = name.replace("_", "-")
        value = args[name]
        if value is True:
            words.append(f"--{flag}")
        elif value is False:
            words.append(f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag}", *map(str, value)]
        else:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


def settings_of(args: dict) -> list[list]:
    """[name, value, source] of each setting; a script's own default has the source "" and comes last."""
    rows = [[name, value, args["set_by"].get(name, "")] for name, value in args.items()
            if name not in NOT_SETTINGS]
    return sorted(rows, key=lambda row: row[2] == "")


def result_before(run: Path, stage: str, args: dict) -> dict:
    """The folder of the stage before and its result, as far as there are any."""
    if stage not in STAGE_BEFORE:
        return {}
    previous, flag = STAGE_BEFORE[stage]
    folder = Path(args[flag]).parent if args.get(flag) else run.parent / previous
    result = folder / "result.json"
    return {"folder": str(folder), **(read_json(result) if result.is_file() else {})}


def curves_of(log: Path) -> dict[str, dict[str, list]]:
    """For each training in a log.jsonl and each of its terms, the term's mean in every epoch.

    An epoch that was logged twice, as one before an interruption may be, counts as it was logged last.
    """
    epochs: dict[str, dict[int, dict]] = {}
    for line in log.read_text().splitlines():
        row = json.loads(line, parse_constant=lambda _: None)
        if "epoch" in row:
            training = epochs.setdefault(row.pop("label"), {})
            training[row.pop("epoch")] = row
    curves = {}
    for label, training in epochs.items():
        rows = [row for _, row in sorted(training.items())]
        curves[label] = {term: [row.get(term) for row in rows] for term in rows[0]}
    return curves


def files_in(run: Path) -> list[str]:
    """For each visible item of a run's folder a line: the size of a file, the number of files of a folder."""
    lines = []
    for item in sorted(run.iterdir()):
        if item.name.startswith("."):
            continue
        if item.is_dir():
            lines.append(f"{item.name}/: {len(list(item.iterdir()))} files")
        else:
            lines.append(f"{item.name}: {item.stat().st_size / 1e3:.0f} kB")
    return lines


def words_of(prompts: Path, dataset: TagDataset) -> dict[str, list]:
    """For each class [word, how often it was chosen, a picture where it was] of its most frequent words.

    prompts: a run's prompts.json; {} where there is none. A picture is a data URI, "" without an image.
    """
    if not prompts.is_file():
        return {}
    counts: dict[str, Counter] = {}
    examples: dict[tuple[str, str], int] = {}  # (class, word) -> the first image where it was chosen
    numbers = {name: index for index, name in enumerate(dataset.names)}
    for name, choices in read_json(prompts).items():
        for label, choice in choices.items():
            word = choice["word"]
            counts.setdefault(label, Counter())[word] += 1
            if name in numbers:
                examples.setdefault((label, word), numbers[name])
    words = {}
    for label in sorted(counts):
        words[label] = []
        for word, count in counts[label].most_common(WORDS_SHOWN):
            picture = ""
            if (label, word) in examples:
                image = dataset.load_image(examples[label, word])
                picture = data_uri(shrink(image, WORD_PICTURE_SIDE))
            words[label].append([word, count, picture])
    return words


# ---- pictures

def pictures_of(dataset: TagDataset, cams: Path | None, masks: Path | None, threshold: float) -> list[dict]:
    """Examples of a run's CAMs and masks: the worst of a sample of the images, then the first images.

    The worst are those of lowest mIoU of their masks, or of their CAMs at a background threshold where there
    are no masks. Where no image has a true mask, more of the first images are shown instead.
    """
    if masks:
        have_file = set(list_label_maps(masks))
    elif cams:
        have_file = set(list_cams(cams))
    else:
        return []
    present = [index for index, name in enumerate(dataset.names) if name in have_file]
    with_truth = [index for index in present if dataset.masked[index]]
    step = max(1, len(with_truth) // SAMPLED_IMAGES)
    mious = {}
    for index in with_truth[::step]:
        mious[index] = image_miou(dataset, index, masks or cams, None if masks else threshold)
    first = present[:FIRST_IMAGES]
    worst = sorted((index for index in mious if index not in first), key=mious.get)[:WORST_IMAGES]
    if not worst:
        first = present[:FIRST_IMAGES + WORST_IMAGES]
    return [example(dataset, index, cams, masks, mious.get(index)) for index in [*worst, *first]]


def image_miou(dataset: TagDataset, index: int, folder: Path, threshold: float | None) -> float:
    """mIoU in percent of one image's label map (`read_labels`); 100 where all its pixels are ignored."""
    truth = dataset.load_mask(index)
    labels = read_labels(folder, dataset.names[index], truth.shape, threshold)
    miou = float(scores(confusion(labels, truth, len(dataset.classes) + 1))["miou"])
    return miou if np.isfinite(miou) else 100.0


def example(dataset: TagDataset, index: int, cams: Path | None, masks: Path | None,
            miou: float | None) -> dict:
    """One image as the page shows it: its tags, its CAMs, and its label map and true mask drawn over it.

    The CAMs [k,h,w] are sent as 8-bit maps at a quarter of the picture's size.
    """
    name = dataset.names[index]
    image = shrink(dataset.load_image(index), PICTURE_SIDE)
    tags = [dataset.classes[k] for k in dataset.labels[index].nonzero()[:, 0].tolist()]
    shown = {"name": name, "miou": miou, "image": data_uri(image), "tags": tags}
    if cams:
        file = read_cam(cams, name)
        size = (math.ceil(image.height / 4), math.ceil(image.width / 4))
        maps = (resize_cam(file, size).clip(0, 1) * 255).round().astype(np.uint8)
        shown["cams"] = {"size": size, "keys": file.keys.tolist(), "maps": base64.b64encode(maps).decode()}
    if masks:
        shown["mask"] = tinted(image, read_mask(masks / f"{name}.png"), dataset.palette)
    truth = dataset.load_mask(index)
    if truth is not None:
        shown["truth"] = tinted(image, truth, dataset.palette)
    return shown


def tinted(image: Image.Image, labels: np.ndarray, palette: np.ndarray) -> str:
    """A label map uint8 [H,W] of any size, resized to an image and drawn over it, as a data URI."""
    resized = Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST)
    return data_uri(overlay(image, np.asarray(resized), palette, 0.6))


def shrink(image: Image.Image, side: int) -> Image.Image:
    """A copy of an image, reduced so that no side is longer than `side` pixels."""
    image = image.copy()
    image.thumbnail((side, side))
    return image


def data_uri(image: Image.Image) -> str:
    """An image as a JPEG in a data URI."""
    target = io.BytesIO()
    image.save(target, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()
