"""CAM files: .npz without pickle, and the .npy dictionaries of other scripts, read without running code."""
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..datasets import TagDataset
from ..errors import InputError
from ..files import atomic_path, existing, nfc
from ..npy_files import read_dictionary

CAM_STRIDE = 4
ROUNDING = 0.01  # by which values may lie outside [0, 1]
FORMATS = {"npz": ".npz", "full": ".npz", "irn": ".npy", "psa": ".npy"}


class CamFile(NamedTuple):
    """The maps of one image's k present classes.

    keys: int64 [k], 0-based classes without background. cam: float32 [k,h,w] in [0, 1], at a quarter
    of the image's size (rounded up). high_res: float32 [k,H,W] at the image's size, or None.
    """
    keys: np.ndarray
    cam: np.ndarray
    high_res: np.ndarray | None


def write_cam(folder: Path | str, name: str, keys: np.ndarray, cam: np.ndarray, fmt: str = "npz",
              high_res: np.ndarray | None = None) -> Path:
    """Write one image's maps (arrays or CPU tensors), whole or not at all, and return the path.

    fmt: `npz` holds keys (int64) and cam (float16); `full` holds high_res (float16) too. Two formats are
    pickled dictionaries for the scripts of others, which need this numpy or a newer one: `irn` holds keys and
    cam as tensors and high_res as an array; `psa` is {class: high_res [H,W]}, as PSA, SEAM, MCTformer and
    WeakTr write it. ValueError: an unknown format, or maps that `read_cam` would refuse.
    """
    if fmt not in FORMATS:
        raise ValueError(f"fmt {fmt!r} is unknown; valid: {', '.join(FORMATS)}")
    if fmt != "npz" and high_res is None:
        raise ValueError(f"fmt {fmt} needs high_res")
    path = Path(folder) / f"{name}{FORMATS[fmt]}"
    try:
        file = _checked_file(keys, cam, high_res, np.float32 if path.suffix == ".npy" else np.float16)
    except InputError as error:
        raise InputError(f"CAMs of {name}: {error}") from error
    with atomic_path(path) as temporary, open(temporary, "wb") as out:
        if fmt == "psa":
            np.save(out, dict(zip(file.keys.tolist(), file.high_res)), allow_pickle=True)
        elif fmt == "irn":
            contents = {"keys": torch.from_numpy(file.keys), "cam": torch.from_numpy(file.cam),
                        "high_res": file.high_res}
            np.save(out, contents, allow_pickle=True)
        elif file.high_res is None:
            np.savez(out, keys=file.keys, cam=file.cam)
        else:
            np.savez(out, keys=file.keys, cam=file.cam, high_res=file.high_res)
    return path


def read_cam(folder: Path | str, name: str) -> CamFile:
    """The CAM file NAME.npz or NAME.npy (IRN's, or PSA's {class: map}) of a folder; no code in it is run.

    InputError: neither file or both files exist; a damaged file; a pickle of anything but arrays and tensors;
    missing fields; shapes that do not match; no class; NaN, infinity or values outside [0, 1]. `check_cam`
    compares the file with its image and data set.
    """
    candidates = [existing(Path(folder) / (name + suffix)) for suffix in (".npz", ".npy")]
    paths = [path for path in candidates if path.is_file()]
    if not paths:
        raise InputError(f"{candidates[0]} (or .npy): no such CAM file")
    if len(paths) > 1:
        raise InputError(f"{paths[0]} and {paths[1].name}: both are there; keep one of them")
    path = paths[0]
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                contents = dict(stored)
        else:
            contents = _read_npy(path)
        missing = [field for field in ("keys", "cam") if field not in contents]
        if missing:
            raise InputError(f"no field {missing[0]!r}; found {list(contents)}")
        return _checked_file(contents["keys"], contents["cam"], contents.get("high_res"), np.float32)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # whatever a damaged or hostile file makes numpy, pickle or torch raise
        reason = ascii((str(error).splitlines() or [""])[0][:120])
        raise InputError(f"{path}: not a readable CAM file ({type(error).__name__}: {reason})") from error


def list_cams(folder: Path | str) -> list[str]:
    """Sorted names of the images that have a CAM file in a folder; InputError without any."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of CAM files")
    names = {nfc(path.stem) for path in folder.iterdir()
             if path.suffix.lower() in FORMATS.values() and not path.name.startswith(".")}
    if not names:
        raise InputError(f"{folder}: no CAM files (.npz, or IRN's or PSA's .npy) in this folder")
    return sorted(names)


def resize_cam(file: CamFile, size: tuple[int, int]) -> np.ndarray:
    """The maps at an image's size (H, W): float32 [k,H,W].

    high_res is returned if it has that size; else cam is resized (bilinear, align_corners False). Maps at
    stride 4 are enlarged 4 times and then cropped, as IRN does it, because their grid covers the image
    rounded up to a multiple of 4.
    """
    if file.high_res is not None and file.high_res.shape[1:] == tuple(size):
        return file.high_res
    height, width = size
    grid = (math.ceil(height / CAM_STRIDE), math.ceil(width / CAM_STRIDE))
    target = (height, width)
    if file.cam.shape[1:] == grid:
        target = (grid[0] * CAM_STRIDE, grid[1] * CAM_STRIDE)
    maps = F.interpolate(torch.from_numpy(file.cam)[None], size=target, mode="bilinear", align_corners=False)
    return np.ascontiguousarray(maps[0, :, :height, :width].numpy())


def check_cam(file: CamFile, where: Path | str, size: tuple[int, int], n_classes: int,
              tags: Sequence[int] = ()) -> CamFile:
    """Return the file if it fits an image of `size` (H, W), its data set and its `tags`.

    tags: the image's 0-based classes; none are compared if it is empty. InputError begins with `where`.
    """
    highest = file.keys.max()
    if highest >= n_classes:
        raise InputError(f"{where}: class {highest} in its keys; this data has 0..{n_classes - 1}")
    untagged = set(file.keys.tolist()) - set(tags)
    if tags and untagged:
        raise InputError(f"{where}: class {min(untagged)} in its keys, the image's tags are "
                         f"{', '.join(map(str, tags))}")
    if file.high_res is not None and file.high_res.shape[1:] != tuple(size):
        stored = list(file.high_res.shape[1:])
        raise InputError(f"{where}: high_res is {stored}, its image {list(size)} (H, W)")
    # The maps have the image's shape up to the rounding of each side. An example: for an image of 30 x 40,
    # 10 columns go with 10 * 30 / 40 = 7.5 rows. Maps of 8 x 10 or 7 x 10 are within one row of that; maps of
    # 10 x 8 (6 rows expected) are another image's. Where the image is higher than wide, one column more or
    # less changes the expected rows by height / width, which is more than one and then the tolerance.
    height, width = size
    rows, columns = file.cam.shape[1:]
    rows_per_column = height / width
    expected_rows = columns * rows_per_column
    too_large = rows > height or columns > width
    if too_large or abs(rows - expected_rows) > max(1, rows_per_column):
        raise InputError(f"{where}: maps of {[rows, columns]} do not fit an image of {list(size)} (H, W)")
    return file


def read_own_cam(dataset: TagDataset, cams: Path, index: int) -> CamFile:
    """The CAM file of one image; InputError where it does not fit the image, its tags or the classes."""
    name = dataset.names[index]
    return check_cam(read_cam(cams, name), cams / name, dataset.sizes[index], len(dataset.classes),
                     dataset.entries[index].tags or ())


def _checked_file(keys: object, cam: object, high_res: object, maps_type: type) -> CamFile:
    """The fields (arrays, tensors or lists) as a CamFile whose maps have the type `maps_type`.

    InputError, which names no file: a field does not hold numbers, or the fields do not fit each other.
    """
    arrays = []
    for value, dtype in ((keys, np.int64), (cam, maps_type), (high_res, maps_type)):
        if value is None:  # there is no high_res
            arrays.append(None)
            continue
        value = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
        admitted_kinds = "iuf"  # signed, unsigned, floating
        if dtype is np.int64 and value.size > 0:  # an empty list is an array of floats
            admitted_kinds = "iu"
        if value.dtype.kind not in admitted_kinds:
            raise InputError(f"a field is no array of numbers, it has type {value.dtype}")
        with np.errstate(over="ignore"):  # a value too large for float16 becomes infinite: refused below
            arrays.append(np.ascontiguousarray(value, dtype))
    keys, cam, high_res = arrays
    fitting_shapes = keys.ndim == 1 and cam.ndim == 3 and len(keys) == len(cam)
    if not fitting_shapes or (len(keys) > 0 and cam.size == 0):
        raise InputError(f"keys {list(keys.shape)} and cam {list(cam.shape)} are not [k] and [k, h, w]")
    if len(keys) == 0:
        raise InputError("it holds no class")
    if keys.min() < 0 or len(set(keys.tolist())) < len(keys):
        raise InputError(f"keys {keys.tolist()} are not different class numbers from 0")
    if high_res is not None and (high_res.ndim != 3 or len(high_res) != len(keys)):
        raise InputError(f"high_res {list(high_res.shape)} is not [k, H, W] for {len(keys)} keys")
    for field, values in (("cam", cam), ("high_res", high_res)):
        if values is None:
            continue
        if not np.isfinite(values).all():
            raise InputError(f"{field} holds NaN or infinity")
        lowest = float(values.min())
        highest = float(values.max())
        if lowest < -ROUNDING or highest > 1 + ROUNDING:
            looks_like = "logits: set values below 0 to 0 and divide each map by its maximum"
            if lowest >= 0 and highest <= 255:
                looks_like = "an image's 0 to 255: divide them by 255"
            raise InputError(f"{field} holds values from {lowest:.4g} to {highest:.4g}, CAMs have 0 to 1; "
                             f"they look like {looks_like}")
    return CamFile(keys, cam, high_res)


def _read_npy(path: Path) -> dict:
    """The fields of an .npy file; PSA's {class: map} becomes keys and cam."""
    contents = read_dictionary(path)
    if contents and all(isinstance(key, int | np.integer) for key in contents):
        return {"keys": list(contents), "cam": np.stack(list(contents.values()))}
    return contents
