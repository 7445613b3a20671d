"""The training engine: run folders, atomic files, and one fit loop that logs, stops on bad losses and resumes exactly."""
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
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible; use --device cpu or auto")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the device computes in it (CUDA, or a processor with such instructions), else fp32."""
    if name != "auto":
        return name
    able = torch.cuda.is_bf16_supported() if device.type == "cuda" else getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return "bf16" if able else "fp32"


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed torch, numpy and random from (seed, epoch): an epoch begins alike whether or not the run was resumed."""
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


def load_weights(path: Path | str, device: torch.device | str = "cpu") -> dict:
    """A checkpoint's contents, tensors and plain values only (no code runs); InputError names a missing or bad file."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: not a readable checkpoint of tensors ({str(error).splitlines()[0][:120]})") from error


class Run:
    """One script's run folder: args.json, log.jsonl, checkpoints and outputs.

    A folder that already holds a run is refused unless `resume` (same settings, goes on) or `overwrite` (starts anew).
    """

    def __init__(self, out: Path | str, config: dict, resume: bool = False, overwrite: bool = False):
        self.out, self.resume = Path(out), resume
        config = json.loads(json.dumps(config, default=str))
        stored = self.out / "args.json"
        if stored.exists() and not (resume or overwrite):
            raise InputError(f"{self.out} already holds a run: --resume goes on, --overwrite starts anew, "
                             "--out chooses another folder")
        if stored.exists() and resume:
            before = json.loads(stored.read_text())
            changed = sorted(key for key in config.keys() | before.keys()
                             if key not in FREE_TO_CHANGE and config.get(key) != before.get(key))
            if changed:
                key = changed[0]
                raise InputError(f"--resume: --{key.replace('_', '-')} was {before.get(key)} in {stored} and is "
                                 f"{config.get(key)} now; use the same value or --overwrite")
        self.out.mkdir(parents=True, exist_ok=True)
        if overwrite and not resume and rank() == 0:
            for old in (self.out / "log.jsonl", *self.out.glob("last*.pt")):
                old.unlink(missing_ok=True)
        if rank() == 0:
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

    def __init__(self, label: str, total: int, unit: str = "images", stream=sys.stderr):
        self.label, self.total, self.unit, self.stream = label, total, unit, stream
        self.done, self.begin, self.shown = 0, time.perf_counter(), 0.0
        self.live = stream.isatty() and rank() == 0

    def update(self, count: int, **terms: float) -> None:
        """Advance by `count`; `terms` may be tensors: they are read only when the line is drawn."""
        self.done += count
        now = time.perf_counter()
        if self.live and now - self.shown > 0.2:
            self.shown = now
            self.stream.write(f"\r\x1b[K{self._line(terms)}")
            self.stream.flush()

    def close(self, **terms: float) -> None:
        """Finish with one plain line."""
        if self.live:
            self.stream.write("\r\x1b[K")
        if rank() == 0:
            print(self._line(terms), flush=True)

    def _line(self, terms: dict) -> str:
        spent = max(time.perf_counter() - self.begin, 1e-9)
        rate = self.done / spent
        left = (self.total - self.done) / max(rate, 1e-9)
        shown = "  ".join(f"{name} {float(value):.4f}" for name, value in terms.items())
        clock = f"{left:.0f} s left" if self.done < self.total else f"{spent:.1f} s"
        return f"{self.label}  {self.done}/{self.total} {self.unit}  {shown}  {rate:.1f} {self.unit}/s  {clock}"


def make_loader(dataset: Dataset, batch_size: int, workers: int = 0, shuffle: bool = True, seed: int = 0,
                drop_last: bool = False) -> DataLoader:
    """A loader of `Batch`es whose order depends on (seed, epoch) alone; ranks take disjoint parts.

    Workers start anew each epoch: persistent ones would carry their random state across it, and resuming be inexact.
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


def make_scheduler(optimizer: torch.optim.Optimizer, name: str, steps: int, power: float = 0.9,
                   warmup: int = 0) -> torch.optim.lr_scheduler.LambdaLR:
    """Per-step learning-rate factor: `poly` (1 - t)^power, `cosine` to zero, or `constant`, after a linear warm-up."""
    shapes = {"poly": lambda t: (1 - t) ** power, "cosine": lambda t: 0.5 + 0.5 * math.cos(math.pi * t),
              "constant": lambda t: 1.0}
    shape = shapes[name]
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / max(warmup, 1)) * shape(min(step / max(steps, 1), 1.0)))


def fit(run: Run, loader: DataLoader, step: Callable[[Batch], dict[str, torch.Tensor]], modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, epochs: int,
        device: torch.device, seed: int, clip_norm: float | None = None, label: str = "train",
        checkpoint: str = "last", precision: str = "fp32", accumulate: int = 1, steps: int | None = None,
        on_epoch: Callable[[int], None] | None = None) -> None:
    """Train `modules` by `step(batch) -> {"loss": scalar, other terms}`; checkpoints and resumes per epoch.

    Raises InputError on a non-finite loss, naming the batch's images. `precision` as in pick_precision; bf16 runs
    `step` under autocast. `accumulate` sums gradients of that many batches before each optimiser and scheduler step;
    after `steps` of those the training ends, within an epoch too;
    `on_epoch` is told each epoch's number.
    """
    stateful = {**modules, "optimizer": optimizer, "scheduler": scheduler}
    low = pick_precision(precision, device) == "bf16"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for epoch in range(run.restore(checkpoint, **stateful), epochs):
        seed_everything(seed, epoch)
        loader.sampler.set_epoch(epoch)
        if on_epoch is not None:
            on_epoch(epoch)
        for module in modules.values():
            module.train()
        progress = Progress(f"{label} {epoch + 1}/{epochs}", min(len(loader) * loader.batch_size, len(loader.sampler)))
        sums: dict[str, torch.Tensor] = {}
        for index, batch in enumerate(loader):
            batch = batch.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                terms = step(batch)
            if not torch.isfinite(terms["loss"]):
                shown = {name: round(value.item(), 4) for name, value in terms.items()}
                raise InputError(f"{label}: the loss is not finite ({shown}) on images {', '.join(batch.names)}; "
                                 "lower --lr or look at these images")
            (terms["loss"] / accumulate).backward()
            if (index + 1) % accumulate == 0 or index + 1 == len(loader):
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
        means = {name: float(value) / (index + 1) for name, value in sums.items()}
        progress.close(**means)
        run.log(label=label, epoch=epoch + 1, lr=scheduler.get_last_lr()[0], **means)
        run.save(epoch + 1, checkpoint, **stateful)
