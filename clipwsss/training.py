"""Training for every stage: how to train, and the one loop, which resumes exactly.

A stage gives `fit` a function from a batch to its loss terms, `{name: (weight, total, count)}`: `total` is a
sum over `count` items (pairs, pixels, images) of this process, and the loss is the sum over the terms of
weight * total / count, where totals and counts are those of all processes. A count of None marks a term that
is a plain sum and is not divided.
"""
import copy
import itertools
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from .distributed import broadcast, gather, local_rank, mean_over_processes, rank, world_size
from .errors import InputError
from .progress import Progress
from .run import Run

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("poly", "cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16")  # of networks, see `use_bf16`
CHECKPOINT_SECONDS = 120  # of training without a checkpoint, after which one is written within the epoch
CHECKPOINT_SHARE = 0.05  # largest share of the time that writing these checkpoints takes


def pick_device(name: str) -> torch.device:
    """The device of a name: `cpu`, `cuda`, or `auto` for CUDA where it is available.

    Each process of a machine has a GPU of its own. InputError where CUDA is asked for and missing, or has
    fewer GPUs than there are processes.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank() >= torch.cuda.device_count():
        raise InputError(f"torchrun --nproc_per_node: this machine has {torch.cuda.device_count()} GPUs, and "
                         "each process needs one; start fewer processes, or use --device cpu")
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16; `auto` does where the device supports it natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


def compile_networks(*networks: nn.Module) -> None:
    """Compile networks in place; the names of their weights do not change, and copies are not compiled.

    InputError where torch.compile does not work, as without a C++ compiler or Triton.
    """
    device = next(networks[0].parameters()).device
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError("--compile: torch.compile does not work on this machine; it needs a C++ compiler, "
                         f"and Triton on a GPU ({reason})") from error
    for network in networks:
        network.compile()


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed torch, numpy and random from (seed, epoch), so that a resumed run's epochs begin alike."""
    mixed = (seed * 1_000_003 + epoch) % 2**32
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def refuse_lone_values(network: nn.Module, method: str, loader: DataLoader, crop_size: int,
                       sync_bn: bool = False) -> None:
    """InputError where a batch norm that trains would see a single value of a channel, which has no variance.

    That is so where maps of 1 x 1 positions come from one image in a process. The `method` of a copy of the
    network is run in training mode on the smallest batch of crops that the loader makes, without values.
    """
    images = min(loader.batch_size, len(loader.sampler))
    rest = len(loader.sampler) % loader.batch_size
    if rest and not loader.drop_last:
        images = min(images, rest)
    if sync_bn:
        images *= world_size()
    trial = copy.deepcopy(network).to("meta")
    trial.train()
    try:
        with torch.no_grad():
            getattr(trial, method)(torch.empty(images, 3, crop_size, crop_size, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(f"--batch-size {loader.sampler.batch_size}: with {images} image of {crop_size} x "
                         f"{crop_size} pixels in a batch of a process, batch norm has one value to train on; "
                         f"use --batch-size {2 * world_size()} or more, and as many images") from None


class Training(NamedTuple):
    """How to train; `label` is the name of the training in the progress line, the log and the checkpoint.

    momentum: of SGD. warmup: steps of linear warm-up. min_lr: where a cosine schedule of `lr` ends.
    clip_norm: largest norm of the gradients, 0 disables clipping. precision: as in `use_bf16`. accumulate:
    batches whose gradients make one step of the optimiser.
    steps: end after so many steps, within an epoch too. schedule_steps: the steps of the learning rate's
    whole schedule, where the training ends earlier. sync_bn: batch norm that trains takes the statistics
    of the images of all processes (on GPUs).
    """
    label: str
    epochs: int
    lr: float
    optimizer: str = "sgd"
    schedule: str = "poly"
    weight_decay: float = 0.0
    momentum: float = 0.9
    warmup: int = 0
    min_lr: float = 0.0
    clip_norm: float = 0.0
    precision: str = "fp32"
    seed: int = 0
    accumulate: int = 1
    steps: int | None = None
    schedule_steps: int | None = None
    sync_bn: bool = False


def make_optimizer(groups: list[dict], training: Training) -> torch.optim.Optimizer:
    """SGD or AdamW over parameter groups (each may name its own lr and weight decay)."""
    groups = [{**group, "params": list(group["params"])} for group in groups]
    groups = [group for group in groups if group["params"]]
    shared = dict(lr=training.lr, weight_decay=training.weight_decay,
                  fused=groups[0]["params"][0].is_cuda or None)
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=training.momentum, **shared)
    return torch.optim.AdamW(groups, **shared)


def make_scheduler(optimizer: torch.optim.Optimizer, name: str, steps: int, warmup: int = 0,
                   end: float = 0.0) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate per step: `poly` (1 - t)^0.9, `cosine` or `constant`, after a linear warm-up.

    end: the share of the learning rate that a cosine falls to.
    """
    def factor(step: int) -> float:
        t = min(step / max(steps, 1), 1.0)  # the part of the training that is done
        if name == "poly":
            shape = (1 - t) ** 0.9
        elif name == "cosine":
            shape = end + (1 - end) * (0.5 + 0.5 * math.cos(math.pi * t))
        else:
            shape = 1.0
        return min(1.0, (step + 1) / max(warmup, 1)) * shape

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


LossTerms = dict[str, tuple[float, Tensor, Tensor | int | None]]  # name -> (weight, total, count)


def joined_loss(terms: LossTerms) -> dict[str, Tensor]:
    """The terms' means over all processes' items, and first `loss`, their weighted sum.

    DistributedDataParallel averages the gradients of W processes, so that a term's gradient is right where
    each process divides its total by the mean count of a process (a plain sum is multiplied by W instead). A
    mean over no items is 0. A single term is shown as `loss` alone.
    """
    means = {}
    for name, (_, total, count) in terms.items():
        if count is None:
            means[name] = world_size() * total
        else:
            exact = torch.promote_types(total.dtype, torch.float32)  # bfloat16 cannot count beyond 256
            count = torch.as_tensor(count, dtype=exact, device=total.device)
            means[name] = total / mean_over_processes(count).clamp(min=1e-6)
    loss = sum(weight * means[name] for name, (weight, _, _) in terms.items())
    if len(means) == 1:
        return {"loss": loss}
    return {"loss": loss, **means}


class Position:
    """The place within an epoch from which training goes on, as a checkpoint keeps it.

    batches: the number of batches that are done, 0 between two epochs. sums: of each loss term over them.
    random: the states of the random generators of each process after them.
    """

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        """Set the place to the beginning of an epoch."""
        self.batches = 0
        self.sums: dict[str, Tensor] = {}
        self.random: list[dict] = []

    def note_random(self, device: torch.device) -> None:
        """Note the states of the random generators of all processes."""
        kind, words, index, has_gauss, gauss = np.random.get_state()
        state = {"torch": torch.get_rng_state(), "random": random.getstate(),
                 "numpy": (kind, words.tolist(), index, has_gauss, gauss)}
        if device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(device)
        self.random = gather(state)

    def restore_random(self, device: torch.device) -> None:
        """Give the random generators the states that were noted, if any."""
        if not self.random:
            return
        state = self.random[min(rank(), len(self.random) - 1)]
        torch.set_rng_state(state["torch"])
        random.setstate(state["random"])
        kind, words, *rest = state["numpy"]
        np.random.set_state((kind, np.array(words, np.uint32), *rest))
        if "cuda" in state and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], device)

    def state_dict(self) -> dict:
        """What a checkpoint keeps."""
        sums = {name: mean_over_processes(value) for name, value in self.sums.items()}
        return {"batches": self.batches, "sums": sums, "random": self.random}

    def load_state_dict(self, state: dict) -> None:
        """Take what a checkpoint kept."""
        self.batches = state["batches"]
        self.sums = state["sums"]
        self.random = state["random"]

    def place(self, epoch: int) -> str:
        """In words: so many epochs are done, and so many batches of the next one."""
        if self.batches:
            return f"after step {self.batches} of epoch {epoch + 1}"
        return f"after epoch {epoch}" if epoch else "from its beginning"


class _LossModule(nn.Module):
    """A loss function as a module that owns what it trains, so that DistributedDataParallel can wrap both."""

    def __init__(self, loss: Callable[[object], LossTerms], modules: dict[str, nn.Module]):
        super().__init__()
        self.loss = loss
        self.trained = nn.ModuleDict(modules)

    def forward(self, batch: object) -> LossTerms:
        return self.loss(batch)


def _synchronise(modules: nn.Module, device: torch.device) -> None:
    """Replace the batch norms that are in training mode by ones over the images of all processes."""
    if device.type != "cuda":
        raise InputError("--sync-bn: torch synchronises batch norm on GPUs only; --frozen-bn does without")
    for parent in list(modules.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and child.training:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


def fit(run: Run, loader: DataLoader, loss: Callable[[object], LossTerms], modules: dict[str, nn.Module],
        groups: list[dict], training: Training, after_epoch: Callable[[int], None] | None = None,
        kept: dict[str, object] | None = None) -> None:
    """Train `modules` by `loss(batch)` (see `LossTerms`), with a checkpoint after each epoch.

    In longer epochs a checkpoint is also written every CHECKPOINT_SECONDS. groups: the optimiser's parameter
    groups. Batches have `names` and `to(device)`; several processes each take their part of every batch. The
    epoch's number, from 0, is `loader.sampler.epoch`. after_epoch(epoch) is called when an epoch has been
    trained, before its checkpoint is written. kept: other objects with `state_dict` and `load_state_dict`
    that the checkpoint holds too. InputError names the images of the batch whose loss is not finite, and the
    epoch after which weights are not finite.
    """
    kept = kept or {}
    optimizer = make_optimizer(groups, training)
    device = optimizer.param_groups[0]["params"][0].device
    per_epoch = -(-len(loader) // training.accumulate)
    steps = training.schedule_steps or training.steps or training.epochs * per_epoch
    end = min(1.0, training.min_lr / training.lr) if training.lr else 1.0
    scheduler = make_scheduler(optimizer, training.schedule, steps, training.warmup, end)
    position = Position()
    stateful = {**modules, **kept, "optimizer": optimizer, "scheduler": scheduler, "position": position}
    refuse_full_disk(run, modules)
    if world_size() > 1:
        owner = _LossModule(loss, modules)
        if training.sync_bn:
            _synchronise(owner.train(), device)
        loss = DistributedDataParallel(owner)
    first_epoch = run.restore(training.label, **stateful)
    place = position.place(first_epoch)  # of the last checkpoint
    if position.batches or 0 < first_epoch < training.epochs:
        print(f"{training.label}: goes on {place}")
    try:
        for epoch in range(first_epoch, training.epochs):
            seed_everything(training.seed, epoch)
            loader.sampler.set_epoch(epoch)
            for module in modules.values():
                module.train()
            label = f"{training.label} {epoch + 1}/{training.epochs}"
            saved = time.monotonic()
            pause = CHECKPOINT_SECONDS
            for means in _train_epoch(loader, loss, optimizer, scheduler, training, label, position):
                if broadcast(time.monotonic() - saved < pause):
                    continue
                begin = time.monotonic()
                position.note_random(device)
                run.save(training.label, epoch, **stateful)
                place = position.place(epoch)
                saved = time.monotonic()
                pause = max(CHECKPOINT_SECONDS, (saved - begin) / CHECKPOINT_SHARE)
            position.begin()
            if after_epoch is not None:
                after_epoch(epoch)
            if not all(p.isfinite().all() for module in modules.values() for p in module.parameters()):
                raise InputError(f"{training.label}: weights are not finite after epoch {epoch + 1}; lower "
                                 "--lr or clip gradients by --clip-norm")
            run.log(label=training.label, epoch=epoch + 1, lr=scheduler.get_last_lr()[0], **means)
            run.save(training.label, epoch + 1, **stateful)
            place = position.place(epoch + 1)
    except (KeyboardInterrupt, MemoryError, RuntimeError):
        print(f"\n{training.label}: with --resume this training goes on {place}", flush=True)
        raise


def refuse_full_disk(run: Run, modules: dict[str, nn.Module]) -> None:
    """InputError where the disk has no room for two checkpoints, each with two moments of every weight.

    The old and the new checkpoint exist together for a moment.
    """
    needed = 2 * 3 * sum(p.nbytes for module in modules.values() for p in module.parameters())
    free = shutil.disk_usage(run.out).free
    if free < needed:
        raise InputError(f"--out {run.out}: checkpoints need {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB "
                         "are free; make room or choose another folder")


def _train_epoch(loader: DataLoader, loss: Callable[[object], LossTerms],
                 optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler,
                 training: Training, label: str, position: Position) -> Iterator[dict[str, float]]:
    """One pass over the loader from `position` on; an empty dictionary after each step of the optimiser.

    The last dictionary has the mean of each term. With several processes the loss synchronises them.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    low_precision = use_bf16(training.precision, device)
    batches = len(loader)
    if training.steps is not None:
        steps_left = training.steps - scheduler.last_epoch
        batches = min(batches, position.batches + steps_left * training.accumulate)
    images = world_size() * min(batches * loader.batch_size, len(loader.sampler))
    progress = Progress(label, images, done=world_size() * position.batches * loader.batch_size)
    sums = {name: value.to(device) for name, value in position.sums.items()}
    loader.sampler.skip = position.batches * loader.batch_size
    rest = iter(loader)
    position.restore_random(device)  # now, because the loader has drawn the seed of its workers
    count = position.batches
    for batch in itertools.islice(rest, batches - position.batches):
        count += 1
        complete = count % training.accumulate == 0 or count == len(loader)
        with nullcontext() if complete or world_size() == 1 else loss.no_sync():
            with torch.autocast(device.type, torch.bfloat16, enabled=low_precision):
                terms = joined_loss(loss(batch.to(device)))
            if not torch.isfinite(terms["loss"]):
                shown = {name: round(value.item(), 4) for name, value in terms.items()}
                raise InputError(f"{training.label}: the loss is not finite ({shown}) on images "
                                 f"{', '.join(batch.names)}; lower --lr or look at these images")
            (terms["loss"] / training.accumulate).backward()
        if complete:
            if training.clip_norm:
                nn.utils.clip_grad_norm_(parameters, training.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
        terms = {name: value.detach() for name, value in terms.items()}
        sums = {name: sums.get(name, 0) + value for name, value in terms.items()}
        progress.update(world_size() * len(batch.names), **terms)
        if complete:
            position.batches = count
            position.sums = sums
            yield {}
    means = {name: float(mean_over_processes(value)) / count for name, value in sums.items()}
    progress.close(**means)
    yield means
