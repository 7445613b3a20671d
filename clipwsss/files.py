"""Files that appear whole or not at all, and checkpoints: tensors and plain values, no stored code runs."""
import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .distributed import is_main
from .errors import InputError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name on success and is removed on any error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_atomic(value: object, path: Path | str) -> None:
    """torch.save by the main process, that never leaves a half-written file."""
    if not is_main():
        return
    with atomic_path(path) as temporary:
        torch.save(value, temporary)


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
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0][:120]
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
    return stored["config"], stored["state_dict"]


def load_network(path: Path | str, kind: str, build: Callable[..., nn.Module]) -> nn.Module:
    """`build(**config)` with the stored weights, in eval mode; InputError where they do not fit."""
    config, state = read_network(path, kind)
    network = build(**config)
    fill(network, state, path)
    return network.eval()


def fill(network: nn.Module, state: dict[str, Tensor], path: Path | str, what: str = "") -> None:
    """Load a state dict strictly; InputError names the file, what was wanted and what does not fit."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split()).partition(": ")[2][:160]
        wanted = what or type(network).__name__
        raise InputError(f"{path}: not the weights of a {wanted} ({reason})") from error
