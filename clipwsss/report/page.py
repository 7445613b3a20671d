"""report.html: what a run did, in one file that asks for no other; or several runs side by side.

assets/report.html draws what this module gathers: a JSON object, all of whose texts it treats as text.
"""
import base64
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..cams.cam_files import read_cam, resize_cam
from ..datasets import TagDataset
from ..datasets.base import read_mask
from ..distributed import is_main
from ..errors import InputError
from ..files import atomic_path
from ..pictures import overlay
from .metrics import confusion, scores
from .scoring import CamFolder, LabelFolder

TEMPLATE = Path(__file__).parents[1] / "assets" / "report.html"
DATA = re.compile(r'(<script type="application/json" id="data">)(.*?)(</script>)', re.DOTALL)
FIRST, WORST, SAMPLE, SIDE, WORDS = 4, 8, 200, 320, 4
# The stage before each, and the flag that names its output.
BEFORE = {"train_prompt": ("train_cam", "init"), "make_pseudo": ("train_prompt", "cams"),
          "train_seg": ("make_pseudo", "masks")}
UNTOLD = {"set_by", "stage", "inputs", "resume", "overwrite", "dry_run", "quiet"}


class StageOutputs(NamedTuple):
    """A data set and what a stage made of its images: folders of CAM files, label maps, both or none."""
    dataset: TagDataset
    cams: Path | None = None
    masks: Path | None = None


def write_report(run: Path, stage: str, outputs: StageOutputs) -> None:
    """Write RUN/report.html from what the finished run recorded in its folder, and from a few pictures."""
    if is_main():
        render({"runs": [gather_run(run, stage, outputs)], "notes": []}, run / "report.html")
        print(f"report: {run / 'report.html'}")


def compare(runs: Sequence[Path], path: Path, notes: Sequence[str] = ()) -> None:
    """Write one page of several finished runs, from their own reports; `notes` are lines above them.

    InputError names a folder without a report.
    """
    pages = [read_report(run / "report.html") for run in runs]
    render({"runs": [item for page in pages for item in page["runs"]], "notes": list(notes)}, path)


def render(page: dict, path: Path) -> None:
    """Write a page, whole or not at all. No text of it can end the script that holds it."""
    text = json.dumps(page, allow_nan=False).replace("<", "\\u003c")
    with atomic_path(path) as temporary:
        temporary.write_text(DATA.sub(lambda parts: parts[1] + text + parts[3], TEMPLATE.read_text()))


def read_report(path: Path) -> dict:
    """The page that `render` wrote; InputError where there is none."""
    try:
        return json.loads(DATA.search(path.read_text())[2])
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: no report; every script writes one at its end") from error


def gather_run(run: Path, stage: str, outputs: StageOutputs) -> dict:
    """All that the page shows of one run."""
    args, result, dataset = read_json(run / "args.json"), read_json(run / "result.json"), outputs.dataset
    previous, flag = BEFORE.get(stage, (None, None))
    before = Path(args[flag]).parent if previous and args.get(flag) else run.parent / str(previous)
    earlier = before / "result.json"
    return {
        "name": run.name, "folder": str(run), "stage": stage, "method": args.get("method", ""),
        "command": command_of(stage, args), "settings": settings_of(args), "result": result,
        "before": {"folder": str(before), **(read_json(earlier) if earlier.is_file() else {})},
        "curves": curves_of(run / "log.jsonl"), "files": files_in(run),
        "classes": ["background", *dataset.classes], "words": words_of(run / "prompts.json", dataset),
        "palette": dataset.palette[:len(dataset.classes) + 1].tolist(),
        "pictures": pictures_of(outputs, result.get("threshold") or CamFolder(run).threshold)}


def read_json(path: Path) -> dict:
    """A JSON object; numbers that are none (NaN) become None."""
    return json.loads(path.read_text(), parse_constant=lambda _: None)


def command_of(stage: str, args: dict) -> str:
    """The command line that makes the run again: the flags that were given, of those that matter."""
    words = ["python", f"{stage}.py"]
    for name, source in args["set_by"].items():
        if source == "the command line" and name not in UNTOLD:
            flag, value = name.replace("_", "-"), args[name]
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def settings_of(args: dict) -> list[list]:
    """[name, value, what set it] of every setting, those that are not the script's own default first."""
    rows = [[name, value, args["set_by"].get(name, "")] for name, value in args.items() if name not in UNTOLD]
    return sorted(rows, key=lambda row: row[2] == "")


def curves_of(log: Path) -> dict[str, dict[str, list]]:
    """Training -> term -> its mean in every epoch, of a log.jsonl."""
    epochs: dict[str, dict[int, dict]] = {}
    for line in log.read_text().splitlines():
        row = json.loads(line, parse_constant=lambda _: None)
        if "epoch" in row:
            epochs.setdefault(row.pop("label"), {})[row.pop("epoch")] = row
    ordered = {label: [row for _, row in sorted(rows.items())] for label, rows in epochs.items()}
    return {label: {term: [row.get(term) for row in rows] for term in rows[0]}
            for label, rows in ordered.items()}


def files_in(run: Path) -> list[str]:
    """What lies in a run's folder, with sizes, or how many files a folder holds."""
    return [f"{item.name}/: {sum(1 for _ in item.iterdir())} files" if item.is_dir() else
            f"{item.name}: {item.stat().st_size / 1e3:.0f} kB" for item in sorted(run.iterdir())
            if not item.name.startswith(".")]


def words_of(prompts: Path, dataset: TagDataset) -> dict[str, list]:
    """Class -> [word, how often it was chosen, an image where it was] of its most frequent words."""
    chosen: dict[str, Counter] = {}
    examples, numbers = {}, {name: index for index, name in enumerate(dataset.names)}
    for name, rows in (read_json(prompts) if prompts.is_file() else {}).items():
        for label, entry in rows.items():
            chosen.setdefault(label, Counter())[entry["word"]] += 1
            if name in numbers:
                examples.setdefault((label, entry["word"]), numbers[name])
    return {label: [[word, count, picture(dataset, examples.get((label, word)), 96)]
                    for word, count in counts.most_common(WORDS)] for label, counts in sorted(chosen.items())}


def picture(dataset: TagDataset, index: int | None, side: int = SIDE) -> str:
    """An image of the data set as a small data URI; "" without one."""
    return "" if index is None else data_uri(small(dataset.load_image(index), side))


def small(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A copy with no side longer than `side` pixels."""
    image = image.copy()
    image.thumbnail((side, side))
    return image


def data_uri(image: Image.Image) -> str:
    """A JPEG inside a data URI."""
    target = io.BytesIO()
    image.save(target, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()


def pictures_of(outputs: StageOutputs, threshold: float) -> list[dict]:
    """The first images, which other runs show too, and the worst of a sample where masks say which are."""
    dataset, cams, masks = outputs
    if not (cams or masks):
        return []
    folder = LabelFolder(masks) if masks else CamFolder(cams, threshold)
    held = folder.names()
    present = [index for index, name in enumerate(dataset.names) if name in held]
    masked = [index for index in present if dataset.has_mask(index)]
    ious = {index: image_miou(dataset, folder, index) for index in masked[::max(1, len(masked) // SAMPLE)]}
    worst = sorted((index for index in ious if index not in present[:FIRST]), key=ious.get)[:WORST]
    shown = [*worst, *present[:FIRST if worst else FIRST + WORST]]
    return [example(outputs, index, ious.get(index)) for index in shown]


def image_miou(dataset: TagDataset, folder: CamFolder | LabelFolder, index: int) -> float:
    """One image's mIoU in percent; 100 where all its pixels are ignored."""
    truth = dataset.load_mask(index)
    labels = folder.labels(dataset.names[index], truth.shape)
    value = float(scores(confusion(labels, truth, len(dataset.classes) + 1))["miou"])
    return value if np.isfinite(value) else 100.0


def example(outputs: StageOutputs, index: int, miou: float | None) -> dict:
    """One image with its tags, CAMs [k,h,w] as 8-bit maps, label map and truth over it, and its mIoU."""
    dataset, cams, masks = outputs
    name, image = dataset.names[index], small(dataset.load_image(index))
    shown = {"name": name, "miou": miou, "image": data_uri(image),
             "tags": [dataset.classes[k] for k in dataset.labels[index].nonzero()[:, 0].tolist()]}
    if cams:
        file, size = read_cam(cams, name), (-(-image.height // 4), -(-image.width // 4))
        maps = (resize_cam(file, size).clip(0, 1) * 255).round().astype(np.uint8)
        shown["cams"] = {"size": size, "keys": file.keys.tolist(), "maps": base64.b64encode(maps).decode()}
    labels = {"mask": read_mask(masks / f"{name}.png") if masks else None, "truth": dataset.load_mask(index)}
    for kind, values in labels.items():
        if values is not None:
            values = Image.fromarray(values).resize(image.size, Image.Resampling.NEAREST)
            shown[kind] = data_uri(overlay(image, np.asarray(values), dataset.palette, 0.6))
    return shown
