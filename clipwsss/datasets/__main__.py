"""Check a folder of your own images and tags: counts, what comes together, everything wrong, what to change.

    python -m clipwsss.datasets check mydata      exit status 0, or 2 where something is wrong
"""
from collections import Counter
from pathlib import Path

import torch

from ..errors import InputError, run_script
from ..flags import Parser
from .folder import FolderDataset, images_below, read_table

FEW = 20  # images of a class, below which its maps are hardly learned
SEVERAL = 3  # images of a class, from which on it says something that another class is always there
OFTEN = 0.9  # share of a class's images from which on another class counts as always there
LARGE = 1000  # pixels of the long side: training crops have 512, CAMs are made at up to twice the size
SHOWN = 5  # names in a line of advice


def read_splits(root: Path) -> tuple[dict[str, FolderDataset], list[str]]:
    """(the splits that have usable images, everything that is wrong with the folder, line by line)."""
    splits: dict[str, FolderDataset] = {}
    problems: list[str] = []
    try:
        rows, _ = read_table(root, images_below(root / "images"))
        for split in sorted({row.split for row in rows}):
            splits[split] = FolderDataset(root, split, skip_bad=True)
            problems += splits[split].skipped
    except InputError as error:
        problems += error.problems
    return splits, list(dict.fromkeys(problems))  # every split finds the lines that belong to none


def describe(splits: dict[str, FolderDataset]) -> list[str]:
    """Images, masks and sizes of each split, then each class's images in it."""
    lines, classes = [], next(iter(splits.values())).classes
    for split, data in splits.items():
        masks = sum(map(data.has_mask, range(len(data))))
        sizes = sorted((entry.size for entry in data.entries), key=max)
        shown = ", ".join("{} x {}".format(*size) for size in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
        lines.append(f"{split}: {len(data)} images, {masks} with masks; "
                     f"smallest, middle, largest (H x W): {shown}")
    wide = max(map(len, ("images of", *classes)))
    lines.append(f"{'images of':<{wide}}" + "".join(f"{split:>10}" for split in splits))
    counts = torch.stack([data.labels.sum(0).int() for data in splits.values()], dim=1).tolist()
    return lines + [f"{name:<{wide}}" + "".join(f"{count:>10}" for count in row)
                    for name, row in zip(classes, counts)]


def advise(root: Path, splits: dict[str, FolderDataset]) -> list[str]:
    """What spoils masks or stops a script though no file is wrong, and what to change, line by line."""
    first, lines = next(iter(splits.values())), []
    labels = torch.cat([data.labels for data in splits.values()])
    together = (labels.T @ labels).int().tolist()
    counts = {name: row[number] for number, (name, row) in enumerate(zip(first.classes, together))}
    for name, row in zip(first.classes, together):
        if counts[name] > OFTEN * len(labels):
            lines.append(f"{name} is in {counts[name]} of {len(labels)} images: add some without it")
        lines += [f"{name}: {both} of its {counts[name]} images have {other} too, so that nothing tells them "
                  f"apart: add images of {name} alone" for other, both in zip(first.classes, row)
                  if other != name and counts[name] >= SEVERAL and both >= OFTEN * counts[name]]
    names = [name for data in splits.values() for name in data.names]
    for bad, what in (
            ([f"{name} ({count})" for name, count in counts.items() if count < FEW],
             f"fewer than {FEW} images, of which its maps are hardly learned: add some or drop the class"),
            ([path.name for path in images_below(root / "images") if path.stem not in names],
             "in no good row of the table: not used"),
            ([name for name, count in Counter(names).items() if count > 1], "in more than one split"),
            ([entry.name for data in splits.values() for entry in data.entries if max(entry.size) > LARGE],
             f"a long side over {LARGE} pixels: smaller copies are much faster and no worse")):
        if bad:
            more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            lines.append(f"{', '.join(bad[:SHOWN])}{more}: {what}")
    if "train" not in splits:
        lines.append("no split is called train: name the one to train on by --split")
    if not any(first.synonyms.values()):
        lines.append("no class has synonyms, of which --method pole chooses: "
                     "python -m clipwsss.guidance.propose finds some in a list of words")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m clipwsss.datasets", description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["check"], help="look at every file, write nothing")
    parser.add_argument("folder", type=Path, help="what --data-root of --dataset folder will be")
    args = parser.parse_args(argv)
    splits, problems = read_splits(args.folder)
    if splits:
        advice = advise(args.folder, splits)
        print("\n".join([*describe(splits), "", "to change for better masks:", *advice, ""]))
    print("\n".join(problems) or "nothing is wrong")
    return 2 if problems else 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
