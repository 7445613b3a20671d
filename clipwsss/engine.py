"""The training engine: run folders, atomic files, one fit loop that logs and resumes exactly."""
import json
import math
import os
import pickle
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .datasets import Batch, collate
from .errors import InputError

# What may differ between a run and its resumption: none of these changes a result.
FREE_TO_CHANGE = {"resume", "overwrite", "device", "workers", "pictures", "skip_bad"}


def rank() -> int:
    """This process's rank under torchrun, 0 on one process."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes under torchrun, 1 on one process."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def pick_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu` or `cuda`; InputError when CUDA is asked for and absent."""
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise InputError("--device cuda: no CUDA device is visible; use --device cpu or auto")
    return torch.device("cuda" if present and name != "cpu" else "cpu")


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to train in bfloat16; `auto` does where the device itself computes in it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed torch, numpy and random from (seed, epoch), so that a resumed run's epochs begin alike."""
    mixed = (seed * 1_000_003 + epoch) % 2**32
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


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
    """torch.save that never leaves a half-written file."""
    with atomic_path(path) as temporary:
        torch.save(value, temporary)


def write_json(value: object, path: Path | str) -> None:
    """Readable JSON, written whole or not at all."""
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


class Run:
    """One script's run folder: args.json, log.jsonl, checkpoints and outputs.

    A folder that holds a run needs `resume` (same settings, goes on) or `overwrite` (starts anew).
    """

    def __init__(self, out: Path | str, config: dict, resume: bool = False, overwrite: bool = False):
        self.out, self.resume = Path(out), resume
        config = json.loads(json.dumps(config, default=str))
        stored = self.out / "args.json"
        if stored.exists() and resume:
            before = json.loads(stored.read_text())
            for key in sorted((config.keys() | before.keys()) - FREE_TO_CHANGE):
                if config.get(key) != before.get(key):
                    raise InputError(f"--resume: --{key.replace('_', '-')} was {before.get(key)} in {stored} "
                                     f"and is {config.get(key)} now; use the same value or --overwrite")
        elif stored.exists() and not overwrite:
            raise InputError(f"{self.out} already holds a run: --resume goes on, --overwrite starts anew, "
                             "--out chooses another folder")
        if rank() == 0:
            if overwrite and not resume:
                for pattern in ("log.jsonl", "last*.pt", "cams/*.np[yz]"):
                    for old in self.out.glob(pattern):
                        old.unlink()
            write_json(config, stored)

    def path(self, *parts: str) -> Path:
        """A path inside the run folder."""
        return self.out.joinpath(*parts)

    def log(self, **values: object) -> None:
        """Append one line to log.jsonl."""
        if rank() == 0:
            with open(self.out / "log.jsonl", "a") as file:
                file.write(json.dumps(values, default=float) + "\n")

    def save(self, epoch: int, label: str = "last", **stateful: object) -> None:
        """Checkpoint everything with a state_dict after `epoch` epochs."""
        if rank() == 0:
            states = {name: item.state_dict() for name, item in stateful.items()}
            save_atomic({"epoch": epoch, **states}, self.out / f"{label}.pt")

    def restore(self, label: str = "last", **stateful: object) -> int:
        """Load the checkpoint of this label when resuming; the number of epochs already done."""
        path = self.out / f"{label}.pt"
        if not (self.resume and path.exists()):
            return 0
        checkpoint = load_weights(path)
        for name, item in stateful.items():
            item.load_state_dict(checkpoint[name])
        return checkpoint["epoch"]


class Progress:
    """One terminal line with loss terms, rate and time left; without a terminal only `close` prints."""

    def __init__(self, label: str, total: int, unit: str = "images"):
        self.label, self.total, self.unit = label, total, unit
        self.done, self.begin, self.shown = 0, time.perf_counter(), 0.0
        self.live = sys.stderr.isatty() and rank() == 0

    def update(self, count: int, **terms: float) -> None:
        """Advance by `count`; `terms` may be tensors: they are read only when the line is drawn."""
        self.done += count
        now = time.perf_counter()
        if self.live and now - self.shown > 0.2:
            self.shown = now
            print(f"\r\x1b[K{self._line(terms)}", end="", file=sys.stderr, flush=True)

    def close(self, **terms: float) -> None:
        """Finish with one plain line."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        if rank() == 0:
            print(self._line(terms), flush=True)

    def _line(self, terms: dict) -> str:
        spent = max(time.perf_counter() - self.begin, 1e-9)
        rate = self.done / spent
        left = (self.total - self.done) / max(rate, 1e-9)
        shown = "  ".join(f"{name} {float(value):.4f}" for name, value in terms.items())
        clock = f"{left:.0f} s left" if self.done < self.total else f"{spent:.1f} s"
        done = f"{self.label}  {self.done}/{self.total} {self.unit}"
        return f"{done}  {shown}  {rate:.1f} {self.unit}/s  {clock}"


def make_loader(dataset: Dataset, batch_size: int, workers: int = 0, shuffle: bool = True, seed: int = 0,
                drop_last: bool = False) -> DataLoader:
    """A loader of `Batch`es whose order depends on (seed, epoch) alone; ranks take disjoint parts.

    Workers start anew each epoch: persistent ones would carry their random state over it and break resuming.
    """
    sampler = DistributedSampler(dataset, world_size(), rank(), shuffle=shuffle, seed=seed)
    return DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, collate_fn=collate,
                      drop_last=drop_last and len(dataset) >= batch_size * world_size(),
                      pin_memory=torch.cuda.is_available())


def make_optimizer(groups: list[dict], name: str, lr: float, weight_decay: float,
                   momentum: float = 0.9) -> torch.optim.Optimizer:
    """SGD or AdamW over parameter groups (each may name its own lr).

    Momentum is SGD's momentum: IRN's and CLIMS's PolyOptimizer hands weight decay to that slot and uses none.
    """
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay, momentum=momentum)
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)


def make_scheduler(optimizer: torch.optim.Optimizer, name: str, steps: int,
                   warmup: int = 0) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate per step: `poly` (1 - t)^0.9, `cosine` to zero or `constant`, after a linear warm-up."""
    shape = {"poly": lambda t: (1 - t) ** 0.9, "cosine": lambda t: 0.5 + 0.5 * math.cos(math.pi * t),
             "constant": lambda t: 1.0}[name]
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / max(warmup, 1)) * shape(min(step / max(steps, 1), 1.0)))


def fit(run: Run, loader: DataLoader, step: Callable[[Batch], dict[str, torch.Tensor]],
        modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler, epochs: int, device: torch.device, seed: int,
        clip_norm: float | None = None, label: str = "train", checkpoint: str = "last",
        precision: str = "fp32", accumulate: int = 1, steps: int | None = None,
        on_epoch: Callable[[int], None] | None = None) -> None:
    """Train `modules` by `step(batch) -> {"loss": scalar, other terms}`; checkpoints and resumes per epoch.

    `precision` as in use_bf16, by autocast. `accumulate` sums the gradients of that many batches for each
    step of optimiser and scheduler; after `steps` of those training ends, within an epoch too. `on_epoch` is
    told each epoch's number. InputError on a loss that is not finite names the batch's images.
    """
    stateful = {**modules, "optimizer": optimizer, "scheduler": scheduler}
    low = use_bf16(precision, device)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for epoch in range(run.restore(checkpoint, **stateful), epochs):
        seed_everything(seed, epoch)
        loader.sampler.set_epoch(epoch)
        if on_epoch is not None:
            on_epoch(epoch)
        for module in modules.values():
            module.train()
        total = min(len(loader) * loader.batch_size, len(loader.sampler))
        progress, sums = Progress(f"{label} {epoch + 1}/{epochs}", total), {}
        for count, batch in enumerate(loader, 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                terms = step(batch.to(device))
            if not torch.isfinite(terms["loss"]):
                shown = {name: round(value.item(), 4) for name, value in terms.items()}
                raise InputError(f"{label}: the loss is not finite ({shown}) on images "
                                 f"{', '.join(batch.names)}; lower --lr or look at these images")
            (terms["loss"] / accumulate).backward()
            if count % accumulate == 0 or count == len(loader):
                if clip_norm:
                    nn.utils.clip_grad_norm_(parameters, clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                scheduler.step()
            terms = {name: value.detach() for name, value in terms.items()}
            sums = {name: sums.get(name, 0) + value for name, value in terms.items()}
            progress.update(len(batch.names), **terms)
            if steps is not None and scheduler.last_epoch >= steps:
                break
        means = {name: float(value) / count for name, value in sums.items()}
        progress.close(**means)
        run.log(label=label, epoch=epoch + 1, lr=scheduler.get_last_lr()[0], **means)
        run.save(epoch + 1, checkpoint, **stateful)
