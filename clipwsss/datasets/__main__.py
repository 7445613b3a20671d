"""Check a folder of images, your own, VOC's or COCO's: print counts, everything that is wrong, and advice.

    python -m clipwsss.datasets check mydata                    exit status 0, or 2 if something is wrong
    python -m clipwsss.datasets check mydata --write-classes    write classes.txt first, from the tags
"""
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import InputError, run_script
from ..files import nfc
from ..flags import Parser
from .base import TagDataset, find_contradictions
from .coco import CocoDataset, coco_splits
from .folder import FolderDataset, sort_masks
from .folder_files import (SYSTEM_FILES, find_tables, image_folders, read_classes, read_table, stored_images,
                           visible_files, write_classes)
from .image_files import TURNS, exif_orientation, files_of, open_file
from .image_names import SUFFIXES
from .voc import AUGMENTED, MISSING_LIST, OFFICIAL, VocDataset, split_sources, voc_folder

USED = ("train", "train_aug", "val", "test")  # the splits of VOC that the scripts use
FEW = 20  # a class with fewer images rarely gets good maps
SEVERAL = 3  # in a class with fewer images, another class may be in all of them by chance
OFTEN = 0.9  # a class in this share of another class's images counts as always present
LARGE = 1000  # pixels of the long side; training crops have 512, CAMs are made at up to twice the size
OWN_VOC = ("classes of your own in VOC's layout are read by --dataset folder: `check --write-classes` writes "
           "classes.txt, and the folder is then checked as one of your own")
SHOWN = 5  # names that a line of advice lists


def layout_of(root: Path) -> type[TagDataset]:
    """The kind of data set: a folder of one's own where it has classes.txt, VOC's where it has JPEGImages,
    COCO's where it has annotations.
    """
    if (root / "classes.txt").is_file():
        return FolderDataset
    with suppress(InputError):
        voc_folder(root)
        return VocDataset
    return CocoDataset if coco_splits(root) else FolderDataset


def split_names(root: Path, layout: type[TagDataset]) -> list[str]:
    """The splits that are checked; InputError for a folder without a good table of tags."""
    if layout is VocDataset:
        return [name for name in split_sources(voc_folder(root)) if name in USED]
    if layout is CocoDataset:
        return coco_splits(root)
    has_classes = (root / "classes.txt").is_file()
    table = read_table(root, list(read_classes(root / "classes.txt")) if has_classes else None)
    return sorted({row.split for row in table.rows})


def read_splits(root: Path, layout: type[TagDataset]) -> tuple[dict[str, TagDataset], list[str]]:
    """(split -> its images with good files, one line for everything that is wrong with the folder)."""
    splits: dict[str, TagDataset] = {}
    problems: list[str] = []
    try:
        names = split_names(root, layout)
    except InputError as error:
        return splits, error.problems
    for split in names:
        try:
            splits[split] = layout(root, split, skip_bad=True)  # decodes every file
            problems += splits[split].skipped
        except InputError as error:
            problems += error.problems
    return splits, list(dict.fromkeys(problems))  # a bad line of the table is found with every split


def describe(splits: dict[str, TagDataset]) -> list[str]:
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


def advise(root: Path, splits: dict[str, TagDataset]) -> list[str]:
    """Lines of advice: what makes masks worse or stops a script although no file is bad."""
    lines = advise_on_classes(splits)
    names = [name for data in splits.values() for name in data.names]
    known = set(names)
    unused = [path.name for path in stored_images(root) if nfc(path.stem) not in known]
    tables = {path for path, _ in find_tables(root)}
    no_images = [path.name for folder in image_folders(root) for path in visible_files(folder)
                 if path not in tables and not path.name.lower().endswith(SUFFIXES)]
    turned = turned_images(splits)
    for data in splits.values():
        lines += data.notes
    twice = [name for name, count in Counter(names).items() if count > 1]
    large = [entry.name for data in splits.values() for entry in data.entries if max(entry.size) > LARGE]
    if unused:
        lines.append(f"{shorten_list(unused)}: not used, because no row of the table names the image or "
                     "one of its files is bad")
    used = {root / "masks", root / "classes.txt", *image_folders(root), *tables}
    used |= {path.parent for path in tables}
    others = [path.name for path in sorted(root.iterdir())
              if path not in used and not path.name.startswith(".") and path.name.lower() not in SYSTEM_FILES]
    if others:
        lines.append(f"{shorten_list(others)}: not used; the names that are read are images, masks, "
                     "classes.txt and labels.csv (or another table, see clipwsss/datasets/FORMATS.md)")
    if no_images:
        lines.append(f"{shorten_list(no_images)}: not used, because images are {', '.join(SUFFIXES)}")
    if turned:
        lines.append(f"{shorten_list(turned)}: turned as the EXIF tag says ({len(turned)} images); their "
                     "masks have to fit the turned image")
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


def missing_parts(layout: type[TagDataset], splits: dict[str, TagDataset]) -> list[str]:
    """Lines about parts of VOC or COCO that are not in the folder and without which a script would stop."""
    lines = []
    for split in ("train", "val"):
        if split not in splits:
            lines.append(f"{split}: this split is not there; scripts that need it would stop")
        elif not any(splits[split].masked):
            lines.append(f"{split}: no image has a mask, so that nothing can be scored on this split")
    if layout is VocDataset and "train_aug" not in splits:
        lines.append(f"train_aug: {MISSING_LIST}")
    return lines


def turned_images(splits: dict[str, TagDataset]) -> list[str]:
    """The images that are turned because of their EXIF tags."""
    turned = []
    for data in splits.values():
        for entry in data.entries:
            with open_file(entry.image, "image", data.max_pixels) as file:
                if exif_orientation(file) in TURNS:
                    turned.append(entry.image.name)
    return turned


def unused_masks(root: Path, splits: dict[str, TagDataset],
                 layout: type[TagDataset]) -> list[tuple[Path, str]]:
    """(file, why it is not used) of files in the folders of masks of a user's images or of VOC's layout."""
    if layout is FolderDataset:
        return next(iter(splits.values())).unused_masks
    root = voc_folder(root)
    images = files_of(root / "JPEGImages", SUFFIXES)
    return [item for name in (OFFICIAL, AUGMENTED) for item in sort_masks(root / name, images)[1]]


def compare_masks(root: Path, splits: dict[str, TagDataset],
                  unused: Sequence[tuple[Path, str]]) -> tuple[list[str], list[str]]:
    """(doubts, errors) on masks that contradict the tags and on `unused_masks`.

    It is an error if no mask of a split fits (`find_contradictions`), or if no file of the folders is used.
    """
    doubts = []
    errors = []
    for split, data in splits.items():
        lines, none_fits = find_contradictions(data)
        found = errors if none_fits else doubts
        found += [f"{split}: {line}" for line in lines]
    by_reason: dict[str, list[str]] = {}
    for path, reason in unused:
        by_reason.setdefault(reason, []).append(path.relative_to(root).as_posix())
    lines = [f"{shorten_list(names)}: not used, because {reason}" for reason, names in by_reason.items()]
    if any(any(data.masked) for data in splits.values()):
        doubts += lines
    else:
        errors += lines
    return doubts, errors


def advise_on_classes(splits: dict[str, TagDataset]) -> list[str]:
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
    parser.add_argument("task", choices=["check"], help="`check` reads every file")
    parser.add_argument("folder", type=Path, help="folder with images/, classes.txt and a table of tags, or "
                        "in VOC's or COCO's layout, see clipwsss/datasets/FORMATS.md")
    parser.add_argument("--write-classes", action="store_true", help="write classes.txt with the classes "
                        "that the tags name; a file that exists is never changed")
    args = parser.parse_args(argv)
    if args.write_classes:
        count = write_classes(args.folder)
        print(f"written: {args.folder / 'classes.txt'}, {count} classes\n")
    layout = layout_of(args.folder)
    splits, problems = read_splits(args.folder, layout)
    doubts = []
    if splits:
        for line in describe(splits):
            print(line)
        if layout is not CocoDataset:
            unused = unused_masks(args.folder, splits, layout)
            doubts, errors = compare_masks(args.folder, splits, unused)
            problems += errors
        if layout is FolderDataset:
            print("\nto improve the masks:")
            lines = advise(args.folder, splits)
        else:
            print("\nwhat is not there:")
            lines = missing_parts(layout, splits) or ["nothing is missing"]
        if doubts:
            lines += ["", "masks that may be wrong:", *doubts]
        for line in lines:
            print(line)
        print()
    if problems and layout is VocDataset:
        print(OWN_VOC)
    if problems:
        print("\n".join(problems))
    elif doubts:
        print(f"no file is bad; what does not fit is told above ({len(doubts)} lines on masks)")
    else:
        print("no errors found")
    return 2 if problems else 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
