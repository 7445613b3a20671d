"""Files that appear whole or not at all, and checkpoints: tensors and plain values, no stored code runs."""
import errno
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .distributed import is_main
from .errors import InputError, input_errors, one_line


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name on success and is removed on any error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that killed processes left in a folder and the folders in it."""
    for pattern in (".*.partial.*", "*/.*.partial.*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def save_atomic(value: object, path: Path | str) -> None:
    """torch.save by the main process, whole or not at all; OSError where the disk is full."""
    if not is_main():
        return
    with atomic_path(path) as temporary:
        try:
            torch.save(value, temporary)
        except RuntimeError as error:
            raise OSError(errno.ENOSPC, f"not written, disk full? ({one_line(error)})", path) from error


def write_json(value: object, path: Path | str) -> None:
    """Readable JSON of the main process, written whole or not at all."""
    if not is_main():
        return
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")


def load_weights(path: Path | str) -> dict:
    """A checkpoint's dictionary of tensors and plain values (no code runs); InputError names a bad file."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with warnings.catch_warnings(action="ignore"):  # the error says it all
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:120]
        raise InputError(f"{path}: not a readable checkpoint of tensors ({reason})") from error
    if not isinstance(stored, dict):
        raise InputError(f"{path}: not a checkpoint but a {type(stored).__name__}")
    return stored


def save_network(network: nn.Module, kind: str, config: dict, path: Path | str) -> None:
    """A network's weights beside its kind and the arguments that build it again (plain values, tensors)."""
    save_atomic({"kind": kind, "config": config, "state_dict": network.state_dict()}, path)


def read_network(path: Path | str, kind: str) -> tuple[dict, dict[str, Tensor]]:
    """(constructor arguments, state dict) of a checkpoint of this kind; InputError on any other file."""
    stored = load_weights(path)
    if stored.get("kind") != kind:
        what = f"holds: {stored['kind']}" if "kind" in stored else "is no checkpoint of these scripts"
        raise InputError(f"{path}: {what}; wanted here: {kind}")
    config, state = stored.get("config"), stored.get("state_dict")
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise InputError(f"{path}: damaged; it has no config or no state_dict")
    return config, state


def load_network(path: Path | str, kind: str, build: Callable[..., nn.Module]) -> nn.Module:
    """`build(**config)` with the stored weights, in eval mode; InputError where they do not fit."""
    config, state = read_network(path, kind)
    with input_errors(f"{path}: damaged; its config builds no network: ", Exception):
        network = build(**config)
    load_weights_into(network, state, path)
    return network.eval()


def load_weights_into(network: nn.Module, state: dict[str, Tensor], path: Path | str, what: str = "") -> None:
    """Load a state dict strictly; InputError names the file, what was wanted and what does not fit."""
    try:
        network.load_state_dict(state)
    except Exception as error:  # a damaged file may hold anything in a tensor's place
        reason = " ".join(str(error).split()).partition(": ")[2][:160]
        wanted = what or type(network).__name__
        raise InputError(f"{path}: not the weights of a {wanted} ({reason})") from error
