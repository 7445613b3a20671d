"""A user's photographs, in files and trees of folders, and the files that a segmenter writes of them."""
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..datasets import TagDataset
from ..datasets.base import Entry
from ..datasets.folder_files import images_below, visible_files
from ..datasets.image_files import MOST_PIXELS
from ..datasets.image_names import SUFFIXES, without_suffix
from ..errors import InputError
from .predict import overlay_path

# What is written of photographs. The files of `coco` and `yolo` are made from the label maps.
FORMATS = ("png", "coco", "yolo", "probabilities")
PIXELS_AT_ONCE = 2_000_000  # of the images in one batch together, unless the user says how many images


class Photos(TagDataset):
    """Photographs by name, turned as their EXIF tags say, without tags, masks or classes.

    A bad file, or one of more than `max_pixels` pixels, raises InputError; with skip_bad it is left out and
    listed in `skipped`.
    """
    oriented = True

    def __init__(self, files: Mapping[str, Path], skip_bad: bool = False, max_pixels: int = MOST_PIXELS):
        entries = [Entry(name, path, None, None, "--predict") for name, path in files.items()]
        super().__init__(entries, (), (), skip_bad, max_pixels)


def image_files(paths: Iterable[Path], results: Path) -> dict[str, Path]:
    """The images that --predict names, and those below its folders, by the name that their results get.

    The name is the path below the folder, without the suffix of the file: photos/day1/a.jpg in photos/ is
    day1/a. Files in `results`, the folder that results are written to, are left out, and a line says so.
    A photograph that is named twice counts once; a line says which other files a folder has. InputError for a
    path that does not exist, a folder without images, and two images of one name.
    """
    files: dict[str, Path] = {}
    others: list[Path] = []
    own = 0
    for path in paths:
        if path.is_dir():
            found = images_below(path)
            others += [file for file in visible_files(path) if not file.name.lower().endswith(SUFFIXES)
                       and not file.resolve().is_relative_to(results.resolve())]
            if not found:
                raise InputError(f"--predict {path}: no image in this folder (valid: {', '.join(SUFFIXES)})")
        elif path.is_file():
            found = [path]
        else:
            raise InputError(f"--predict {path}: no such file or folder")
        for image in found:
            below = image.relative_to(path) if path.is_dir() else Path(image.name)
            name = without_suffix(below).as_posix()
            if path.is_dir() and image.resolve().is_relative_to(results.resolve()):
                own += 1
            elif name in files and image.resolve() != files[name].resolve():
                raise InputError(f"--predict: {results / name}.png would be the result of several images, "
                                 f"{files[name]} and {image}; rename them")
            else:
                files[name] = image
    if own:
        print(f"note: {own} images in {results} are left out, because results are written there",
              file=sys.stderr)
    if others:
        print(f"note: {others[0]}: not used, because images are {', '.join(SUFFIXES)} ({len(others)} such "
              "files)", file=sys.stderr)
    if not files:
        raise InputError(f"--predict: all {own} images lie in {results}, where results are written; choose "
                         "another folder by --out")
    return files


def results_of(name: str, folder: Path, formats: Sequence[str]) -> list[Path]:
    """The files in `folder` that are written of the photograph of this name alone, in these FORMATS."""
    results = [folder / f"{name}.png"]
    if "png" in formats:
        results.append(overlay_path(results[0]))
    if "probabilities" in formats:
        results.append(folder / f"{name}.npz")
    return results


def joint_results(names: Iterable[str], folder: Path, formats: Sequence[str]) -> list[Path]:
    """The files in `folder` that are made at the end, of all label maps together."""
    results = []
    if "coco" in formats:
        results.append(folder / "instances.json")
    if "yolo" in formats:
        results += [folder / "data.yaml", *(folder / "labels" / f"{name}.txt" for name in names)]
    return results


def finished_photos(files: Mapping[str, Path], folder: Path, formats: Sequence[str]) -> set[str]:
    """The names of the photographs whose results an interrupted prediction has written already."""
    return {name for name in files if all(path.exists() for path in results_of(name, folder, formats))}


def refuse_taken_names(files: Mapping[str, Path], folder: Path, formats: Sequence[str],
                       replaces: bool = False) -> None:
    """InputError where the results of photographs in `folder` would replace files.

    That is: a result of another photograph (the overlay of `a`, and a photograph `a_overlay`), one of the
    photographs themselves, or, unless it `replaces` results, any file that exists already.
    """
    photographs = {path.resolve() for path in files.values()}
    taken = set()
    for name in files:
        for path in results_of(name, folder, formats):
            if path in taken:
                raise InputError(f"--predict: {path} would be the result of several images; rename them")
            if path.resolve() in photographs and path.exists():
                raise InputError(f"--predict: {path} would replace an image; choose another folder by --out")
            if path.exists() and not replaces:
                raise already_there(path)
            taken.add(path)
    for path in joint_results(files, folder, formats):
        if path.exists() and not replaces:
            raise already_there(path)


def already_there(path: Path) -> InputError:
    """The error for a result that would replace a file."""
    return InputError(f"--predict: {path} already exists; choose another folder by --out, continue by "
                      "--resume, or replace it by --overwrite")


def photos_at_once(sizes: Sequence[tuple[int, int]]) -> int:
    """How many photographs of these sizes (H, W) are predicted together: PIXELS_AT_ONCE, 8 at most."""
    largest = max(height * width for height, width in sizes)
    return max(1, min(8, PIXELS_AT_ONCE // largest))
