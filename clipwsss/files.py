"""Files that are written whole or not at all, text and names, checkpoints, weights that networks start from.

Text is UTF-8 whatever the locale is, and names are compared in one Unicode form. Checkpoints hold tensors and
plain values; no code that one may hold is run.
"""
import argparse
import codecs
import errno
import hashlib
import http.client
import json
import math
import os
import pickle
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from torch import Tensor, nn

from .distributed import rank
from .errors import InputError, one_line


# What published checkpoints hold beside tensors and Python's own values, and under which name: the best mIoU
# of WeakTr's and SemPLeS' generators is a NumPy number, DeiT's scripts store their arguments. Making these
# objects runs no code of the file. A path of another system is read as a name only. numpy.core is the name of
# numpy._core before NumPy 2, and pathlib._local that of pathlib's classes in Python 3.13.
NUMPY_SCALAR = np.float64(0).__reduce__()[0]
PUBLISHED_VALUES = [
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")},
    argparse.Namespace,
    (PurePosixPath, "pathlib.PosixPath"),
    (PurePosixPath, "pathlib._local.PosixPath"),
    (PureWindowsPath, "pathlib.WindowsPath"),
    (PureWindowsPath, "pathlib._local.WindowsPath"),
]

TEMPORARY_FILES = (".*.partial.*", "*/.*.partial.*")  # of `atomic_path`, in a folder and the folders in it


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` on success and removed on any error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_atomic(value: object, path: Path | str) -> None:
    """torch.save by the main process, whole or not at all; OSError if the disk is full."""
    if rank() > 0:
        return
    with atomic_path(path) as temporary:
        try:
            torch.save(value, temporary)
        except RuntimeError as error:
            reason = f"not written, disk full? ({one_line(error)})"
            raise OSError(errno.ENOSPC, reason, path) from error


# ---- text, JSON and names

def read_text(path: Path | str, errors: str = "strict") -> str:
    """The content of a text file; InputError if it is missing or neither UTF-8 nor marked as UTF-16.

    errors: `surrogateescape` reads what `write_text` made of a file's name that the locale could not decode.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            begin = file.read(2)
        is_utf16 = begin in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # a spreadsheet's "Unicode text"
        # utf-8-sig drops a byte-order mark.
        text = path.read_text(encoding="utf-16" if is_utf16 else "utf-8-sig", errors=errors)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeError as error:
        reason = f"not readable as UTF-8 text ({error}); save it with that encoding"
        raise InputError(f"{path}: {reason}") from error
    except OSError as error:
        raise InputError(f"{path}: not readable as text ({one_line(error)})") from error
    if "\0" in text:  # as in UTF-16 without its mark, or in a file of another kind
        raise InputError(f"{path}: not readable as UTF-8 text (it holds zero bytes); save it with "
                         "that encoding")
    return text


def write_text(text: str, path: Path | str) -> None:
    """Write UTF-8 text, whole or not at all; the ends of lines are written as they are."""
    # A file's name that the locale could not decode is written as the bytes that it has on the disk.
    with (atomic_path(path) as temporary,
          open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file):
        file.write(text)


def read_json(path: Path | str) -> object:
    """The value of a JSON file, with None in place of NaN and infinity; InputError names a bad file."""
    text = read_text(path)
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from error


def to_json(value: object, indent: int | None = None) -> str:
    """JSON text of plain values, NumPy's and torch's numbers among them; NaN and infinity become null."""
    return json.dumps(_plain(value), indent=indent, default=str, allow_nan=False)


def _plain(value: object) -> object:
    """The value with Python's numbers in place of NumPy's and torch's, and None in place of NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | Tensor):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(value: object, path: Path | str) -> None:
    """Write indented JSON by the main process, whole or not at all; NaN becomes null."""
    if rank() == 0:
        write_text(to_json(value, indent=1) + "\n", path)


def nfc(name: str) -> str:
    """A name in the Unicode form in which names are compared: letters with their accents as one character.

    macOS and some programs write accents as characters of their own; on the screen both look the same.
    """
    return unicodedata.normalize("NFC", name)


def utf8_name(name: str) -> str:
    """The name of a file as UTF-8 tables spell it, where the locale reads names in another encoding."""
    try:
        return nfc(os.fsencode(name).decode("utf-8"))
    except UnicodeError:
        return nfc(name)


def existing(path: Path) -> Path:
    """The path of the file in the spelling that it has on the disk; the path itself if there is none.

    Spellings differ in the Unicode form of the name and in the case of the suffix.
    """
    for suffix in (path.suffix, path.suffix.lower(), path.suffix.upper()):
        for form in ("NFC", "NFD"):
            spelled = path.with_name(unicodedata.normalize(form, path.stem) + suffix)
            if spelled.exists():
                return spelled
    return path


# ---- checkpoints

def load_weights(path: Path | str) -> dict:
    """A checkpoint's dictionary of tensors, plain values and PUBLISHED_VALUES; no code in it is run.

    A file of safetensors, which the name's suffix tells, is read by the optional package of that name.

    The prefix `module.`, which nn.DataParallel puts before names, is removed from the names of the dictionary
    and of the state dict that it may hold as "state_dict" or "model". InputError: the file is missing,
    damaged or not a dictionary.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint")
    if Path(path).suffix == ".safetensors":
        return read_safetensors(path)
    try:
        # The error below tells what the warnings would.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(PUBLISHED_VALUES):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: not a readable checkpoint of tensors (no file of torch, or one that holds "
                         "objects other than tensors and plain values)") from error
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:120]
        raise InputError(f"{path}: not a readable checkpoint of tensors ({reason})") from error
    if not isinstance(stored, dict):
        raise InputError(f"{path}: not a checkpoint but a {type(stored).__name__}")
    stored = dict(stored)
    tables = [stored]
    for part in ("state_dict", "model"):
        if isinstance(stored.get(part), dict):
            stored[part] = dict(stored[part])
            tables.append(stored[part])
    for table in tables:
        for name in list(table):
            if not isinstance(name, str):
                raise InputError(f"{path}: not a checkpoint; {ascii(name)[:80]} is not a tensor's name")
            # Every entry is put in again, also under its old name, so that their order stays the same.
            table[name.removeprefix("module.")] = table.pop(name)
    return stored


def read_safetensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a file of safetensors; InputError: a damaged file, or the package is missing."""
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise InputError(f"{path}: reading it needs the optional package safetensors (pip install "
                         "safetensors); or take the same weights as a file of torch") from None
    try:
        return load_file(path)
    except Exception as error:  # the package's own errors
        raise InputError(f"{path}: not a readable file of safetensors ({one_line(error)[:120]})") from error


def save_network(network: nn.Module, kind: str, config: dict, path: Path | str) -> None:
    """Save a network's weights with its kind and `config`, the plain values that build it again."""
    save_atomic({"kind": kind, "config": config, "state_dict": network.state_dict()}, path)


def read_network(path: Path | str, kind: str) -> tuple[dict, dict[str, Tensor]]:
    """(config, state dict) of a checkpoint of this kind; InputError on any other file."""
    stored = load_weights(path)
    if "kind" not in stored:
        raise InputError(f"{path}: not a checkpoint of this package; expected: {kind}")
    if stored["kind"] != kind:
        raise InputError(f"{path}: another kind of checkpoint; expected: {kind}, found: {stored['kind']}")
    config = stored.get("config")
    state = stored.get("state_dict")
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise InputError(f"{path}: damaged; it has no config or no state_dict")
    return config, state


def load_weights_into(network: nn.Module, state: dict[str, Tensor], path: Path | str, what: str = "") -> None:
    """Load a state dict strictly.

    InputError names the file, `what` was expected (the network's class unless given) and what does not fit.
    """
    with misfit_errors(path, what or type(network).__name__):
        network.load_state_dict(state)


@contextmanager
def misfit_errors(path: Path | str, what: str) -> Iterator[None]:
    """Turn an error of load_state_dict, which has many lines, into an InputError of one line."""
    try:
        yield
    except Exception as error:  # a damaged file may hold anything in a tensor's place
        # "Error(s) in loading state_dict for ResNet:\n\tMissing key(s) ..." becomes "Missing key(s) ...".
        message = " ".join(str(error).split())
        reason = message.partition(": ")[2] or message
        raise InputError(f"{path}: not the weights of a {what} ({reason[:160]})") from error


# ---- weights that networks start from

def download(url: str, sha256_prefix: str, folder: Path | str | None = None, file_name: str = "") -> Path:
    """The file of a URL in `folder` (default: torch hub's checkpoint folder), downloaded if it is missing.

    file_name: what the file is called there, by default as in the URL. The file's SHA-256 must begin with
    `sha256_prefix`, which is empty where it is not known. InputError: the file or the download is damaged.
    FileNotFoundError: the URL cannot be reached. Both messages name the URL and the path of the file.
    """
    folder = Path(folder).expanduser() if folder else Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / (file_name or url.rpartition("/")[2])
    if path.is_file() and not sha256_prefix:
        return path
    if path.is_file():
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if not sha256.startswith(sha256_prefix):
            raise InputError(f"{path}: damaged or another file (its SHA-256 does not begin with "
                             f"{sha256_prefix}); delete it, or replace it by {url}")
        return path
    print(f"downloading {url} to {path}", file=sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), sha256_prefix, progress=sys.stderr.isatty())
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(f"{url}: not downloaded ({error}); download it elsewhere and save it as "
                                f"{path}") from None
    except RuntimeError as error:  # the SHA-256 is another one
        raise InputError(f"{url}: the download is damaged ({error}); try again, or download it elsewhere and "
                         f"save it as {path}") from None
    return path


def start_file(weights: str | Path, backbone: str, published: Mapping[str, tuple[str, str]]) -> Path:
    """The file that a backbone starts from: its ImageNet weights for `imagenet`, else the path `weights`.

    published: (URL, first digits of the SHA-256) by backbone. InputError: a backbone without published
    weights, or no such file. Errors of `download` pass through.
    """
    if str(weights) == "imagenet":
        if backbone not in published:
            raise InputError(f"--weights imagenet: {backbone} has no ImageNet weights; use none or a file")
        return download(*published[backbone])
    if not Path(weights).is_file():
        raise InputError(f"--weights {weights}: no such weights file; use imagenet, none or a path")
    return Path(weights)


def load_backbone(network: nn.Module, weights: str | Path, backbone: str,
                  published: Mapping[str, tuple[str, str]]) -> None:
    """Load the weights that a ResNet starts from.

    weights: `imagenet`, a file of torchvision, or a checkpoint of this package whose network has a `backbone`
    of this kind. InputError: a file that is missing, damaged or does not fit. FileNotFoundError: a download
    that fails.
    """
    path = start_file(weights, backbone, published)
    state = load_weights(path)
    if "state_dict" in state:  # a checkpoint of this package
        state = {name.removeprefix("backbone."): value for name, value in state["state_dict"].items()
                 if name.startswith("backbone.")}
        if not state:
            raise InputError(f"--weights {path}: its network has no ResNet as backbone; use imagenet, none "
                             "or another file")
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}  # the classifier
    load_weights_into(network, state, path, backbone)
