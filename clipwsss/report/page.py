"""report.html: what a run did, in one file that loads no other file, or several runs side by side.

This module collects a run's figures, settings and pictures in a JSON object, and `assets/report.html` draws
them. All texts of the object reach that page as plain text, never as markup.
"""
import base64
import csv
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
from ..datasets.image_files import read_mask
from ..distributed import rank
from ..errors import InputError
from ..files import existing, read_json, read_text, to_json, write_text
from ..pictures import overlay
from .quality import QUALITY_FILE
from .metrics import confusion, scores
from .scoring import CAM_THRESHOLD, list_label_maps, read_labels, worst_first

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

    The `notes` of the run's result stand above all else. cams, masks: the folders of CAM files and of label
    maps whose images are shown, if there are any. The main process writes the page; the others return at
    once.
    """
    if rank() > 0:
        return
    args = read_json(run / "args.json")
    result = read_json(run / "result.json")
    settings = [[name, value, args["set_by"].get(name, "")] for name, value in args.items()
                if name not in NOT_SETTINGS]
    settings.sort(key=lambda row: row[2] == "")  # a script's own defaults, which have no source, come last
    before = {}  # the result of the stage before, as far as there is one
    if stage in STAGE_BEFORE:
        previous, flag = STAGE_BEFORE[stage]
        folder = Path(args[flag]).parent if args.get(flag) else run.parent / previous
        before["folder"] = str(folder)
        if (folder / "result.json").is_file():
            before.update(read_json(folder / "result.json"))
    files = []
    for item in sorted(item for item in run.iterdir() if not item.name.startswith(".")):
        if item.is_dir():
            files.append(f"{item.name}/: {len(list(item.iterdir()))} files")
        else:
            files.append(f"{item.name}: {item.stat().st_size / 1e3:.0f} kB")
    threshold = result.get("threshold") or CAM_THRESHOLD
    gathered = {
        "name": run.name, "folder": str(run), "stage": stage, "method": args.get("method", ""),
        "command": command_of(stage, args), "settings": settings, "result": result, "before": before,
        "curves": curves_of(run / "log.jsonl"), "files": files, "classes": ["background", *dataset.classes],
        "palette": dataset.palette[:len(dataset.classes) + 1].tolist(),
        "words": words_of(run / "prompts.json", dataset), "quality": quality_of(run / QUALITY_FILE),
        "pictures": pictures_of(dataset, cams, masks, threshold)}
    render({"runs": [gathered], "notes": result.get("notes", [])}, run / "report.html")
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
    text = to_json(page).replace("<", "\\u003c")  # no text can end the script element
    html = DATA_ELEMENT.sub(lambda parts: parts[1] + text + parts[3], read_text(PAGE_TEMPLATE))
    write_text(html, path)


def read_report(path: Path) -> dict:
    """The page that `render` wrote; InputError where the file is missing or is no such page."""
    try:
        return json.loads(DATA_ELEMENT.search(read_text(path))[2])
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: no report; every script writes one when it has finished") from error


# ---- what a run recorded

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


def curves_of(log: Path) -> dict[str, dict[str, list]]:
    """For each training in a log.jsonl and each of its terms, the term's mean in every epoch.

    An epoch that was logged twice, as one before an interruption may be, counts as it was logged last.
    """
    epochs: dict[str, dict[int, dict]] = {}
    for line in read_text(log).splitlines():
        row = json.loads(line, parse_constant=lambda _: None)
        if "epoch" in row:
            training = epochs.setdefault(row.pop("label"), {})
            training[row.pop("epoch")] = row
    curves = {}
    for label, training in epochs.items():
        rows = [row for _, row in sorted(training.items())]
        curves[label] = {term: [row.get(term) for row in rows] for term in rows[0]}
    return curves


def quality_of(path: Path) -> list[list[str]]:
    """The rows of a run's quality list, its head first; [] where there is none."""
    if not path.is_file():
        return []
    return list(csv.reader(io.StringIO(read_text(path, errors="surrogateescape"), newline="")))


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
                image.thumbnail((WORD_PICTURE_SIDE, WORD_PICTURE_SIDE))
                picture = data_uri(image)
            words[label].append([word, count, picture])
    return words


# ---- pictures

def pictures_of(dataset: TagDataset, cams: Path | None, masks: Path | None, threshold: float) -> list[dict]:
    """Examples of a run's CAMs and masks: the worst of a sample of the images, then the first images.

    The worst are those of lowest mIoU of their masks, or of their CAMs at a background threshold where there
    are no masks. An image whose pixels are all ignored has no mIoU and comes last. Where no image has a true
    mask, more of the first images are shown instead.
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
        truth = dataset.load_mask(index)
        labels = read_labels(masks or cams, dataset.names[index], truth.shape, None if masks else threshold)
        mious[index] = float(scores(confusion(labels, truth, len(dataset.classes) + 1))["miou"])
    first = present[:FIRST_IMAGES]
    others = [index for index in mious if index not in first]
    worst = sorted(others, key=lambda index: worst_first(mious[index]))[:WORST_IMAGES]
    if not worst:
        first = present[:FIRST_IMAGES + WORST_IMAGES]
    return [example(dataset, index, cams, masks, mious.get(index)) for index in [*worst, *first]]


def example(dataset: TagDataset, index: int, cams: Path | None, masks: Path | None,
            miou: float | None) -> dict:
    """One image as the page shows it: its tags, its CAMs, and its label map and true mask drawn over it.

    The CAMs [k,h,w] are sent as 8-bit maps at a quarter of the picture's size.
    """
    name = dataset.names[index]
    image = dataset.load_image(index)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    tags = [dataset.classes[k] for k in dataset.labels[index].nonzero()[:, 0].tolist()]
    shown = {"name": name, "miou": miou, "image": data_uri(image), "tags": tags}
    if cams:
        file = read_cam(cams, name)
        size = (math.ceil(image.height / 4), math.ceil(image.width / 4))
        maps = (resize_cam(file, size).clip(0, 1) * 255).round().astype(np.uint8)
        shown["cams"] = {"size": size, "keys": file.keys.tolist(), "maps": base64.b64encode(maps).decode()}
    label_maps = {}
    if masks:
        label_maps["mask"] = read_mask(existing(masks / f"{name}.png"))
    if dataset.masked[index]:
        label_maps["truth"] = dataset.load_mask(index)
    for kind, labels in label_maps.items():
        resized = Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST)
        shown[kind] = data_uri(overlay(image, np.asarray(resized), dataset.palette, 0.6))
    return shown


def data_uri(image: Image.Image) -> str:
    """An image as a JPEG in a data URI."""
    target = io.BytesIO()
    image.save(target, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()
