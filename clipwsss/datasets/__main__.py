"""Check a folder of your own images and tags: print counts, everything that is wrong, and advice.

    python -m clipwsss.datasets check mydata      exit status 0, or 2 if something is wrong
"""
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import InputError, run_script
from ..flags import Parser
from .folder import FolderDataset, images_below, read_table

FEW = 20  # a class with fewer images rarely gets good maps
SEVERAL = 3  # in a class with fewer images, another class may be in all of them by chance
OFTEN = 0.9  # a class in this share of another class's images counts as always present
LARGE = 1000  # pixels of the long side; training crops have 512, CAMs are made at up to twice the size
SHOWN = 5  # names that a line of advice lists


def read_splits(root: Path) -> tuple[dict[str, FolderDataset], list[str]]:
    """(split -> its images with good files, one line for everything that is wrong with the folder)."""
    splits: dict[str, FolderDataset] = {}
    problems: list[str] = []
    try:
        rows, _ = read_table(root, images_below(root / "images"))
        for split in sorted({row.split for row in rows}):
            splits[split] = FolderDataset(root, split, skip_bad=True)  # decodes every file
            problems += splits[split].skipped
    except InputError as error:
        problems += error.problems
    return splits, list(dict.fromkeys(problems))  # a bad line of the table is found with every split


def describe(splits: dict[str, FolderDataset]) -> list[str]:
    """Lines with images, masks and sizes of each split, then a table of the images of each class."""
    lines = []
    for split, data in splits.items():
        masks = sum(data.masked)
        sizes = [f"{height} x {width}"
                 for height, width in sorted((entry.size for entry in data.entries), key=max)]
        lines.append(f"{split}: {len(data)} images, {masks} with masks; sizes (H x W): smallest {sizes[0]}, "
                     f"median {sizes[len(sizes) // 2]}, largest {sizes[-1]}")
    classes = next(iter(splits.values())).classes
    wide = max(len(name) for name in ("images of", *classes))
    lines.append(f"{'images of':<{wide}}" + "".join(f"{split:>10}" for split in splits))
    for number, name in enumerate(classes):
        counts = [int(data.labels[:, number].sum()) for data in splits.values()]
        lines.append(f"{name:<{wide}}" + "".join(f"{count:>10}" for count in counts))
    return lines


def advise(root: Path, splits: dict[str, FolderDataset]) -> list[str]:
    """Lines of advice: what makes masks worse or stops a script although no file is bad."""
    lines = advise_on_classes(splits)
    names = [name for data in splits.values() for name in data.names]
    unused = [path.name for path in images_below(root / "images") if path.stem not in names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    large = [entry.name for data in splits.values() for entry in data.entries if max(entry.size) > LARGE]
    if unused:
        lines.append(f"{shorten_list(unused)}: not used, because no row of the table names the image or "
                     "one of its files is bad")
    if twice:
        lines.append(f"{shorten_list(twice)}: in more than one split")
    if large:
        lines.append(f"{shorten_list(large)}: the long side has over {LARGE} pixels; smaller copies are much "
                     "faster and give masks as good")
    if "train" not in splits:
        lines.append("no split is called train: name the split to train on by --split")
    if not any(next(iter(splits.values())).synonyms.values()):
        lines.append("no class has synonyms, which --method pole chooses from: "
                     "python -m clipwsss.guidance.propose finds some in a list of words")
    return lines


def advise_on_classes(splits: dict[str, FolderDataset]) -> list[str]:
    """Lines of advice on classes that are in nearly all images, always together, or in few images."""
    classes = next(iter(splits.values())).classes
    labels = torch.cat([data.labels for data in splits.values()])
    together = (labels.T @ labels).int().tolist()  # [K, K]: images that have both classes
    lines = []
    few = []
    for number, name in enumerate(classes):
        count = together[number][number]
        if count > OFTEN * len(labels):
            lines.append(f"{name} is in {count} of {len(labels)} images: add some images without it")
        for other, both in enumerate(together[number]):
            if other != number and count >= SEVERAL and both >= OFTEN * count:
                lines.append(f"{name}: {both} of its {count} images also show {classes[other]}, so the two "
                             f"cannot be told apart: add images of {name} alone")
        if count < FEW:
            few.append(f"{name} ({count})")
    if few:
        lines.append(f"{shorten_list(few)}: fewer than {FEW} images, too few for good maps: add images or "
                     "drop the class")
    return lines


def shorten_list(names: Sequence[str]) -> str:
    """The first names of a list and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m clipwsss.datasets", description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["check"], help="`check` reads every file and writes nothing")
    parser.add_argument("folder", type=Path, help="folder with images/, classes.txt and a table of tags, see "
                        "clipwsss/datasets/FORMATS.md")
    args = parser.parse_args(argv)
    splits, problems = read_splits(args.folder)
    if splits:
        for line in describe(splits):
            print(line)
        print("\nto improve the masks:")
        for line in advise(args.folder, splits):
            print(line)
        print()
    print("\n".join(problems) or "no errors found")
    return 2 if problems else 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
