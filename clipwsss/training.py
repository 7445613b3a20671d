"""Training for every stage: the record of how to train, one loop that resumes exactly."""
import math
import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from .distributed import average, local_rank, world_size
from .errors import InputError
from .progress import Progress
from .run import Run

OPTIMIZERS, SCHEDULES = ("sgd", "adamw"), ("poly", "cosine", "constant")


def pick_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu` or `cuda`, where each process has a GPU of its own.

    InputError when CUDA is asked for and absent, or has too few GPUs.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank() >= torch.cuda.device_count():
        raise InputError(f"torchrun --nproc_per_node: at most {torch.cuda.device_count()} here, one for each "
                         "GPU, or --device cpu")
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16; `auto` does where the device itself does."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which networks compute as `use_bf16` says."""
    return torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(precision, device))


def compile_networks(*networks: nn.Module) -> None:
    """Let networks run compiled where they are called; their copies and their weights' names stay plain.

    InputError where torch.compile does not work, as without a C++ compiler or Triton.
    """
    device = next(networks[0].parameters()).device
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except RuntimeError as error:
        raise InputError("--compile: torch.compile does not work here, it needs a C++ compiler (GPU: Triton) "
                         f"({str(error).strip().partition(chr(10))[0]}); leave it out") from error
    for network in networks:
        network.compile()


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed torch, numpy and random from (seed, epoch), so that a resumed run's epochs begin alike."""
    mixed = (seed * 1_000_003 + epoch) % 2**32
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


class Training(NamedTuple):
    """How to train: `label` names the progress line, the log's lines and the checkpoint.

    accumulate: batches whose gradients make one step of optimiser and scheduler; steps: end after so many,
    within an epoch too; clip_norm: 0 does not clip; warmup: steps of linear warm-up; precision: use_bf16's.
    sync_bn: batch norm that trains takes the statistics of all processes' images (on GPUs).
    Momentum is SGD's momentum: IRN's and CLIMS' PolyOptimizer hands weight decay to that slot and uses none.
    """
    label: str
    epochs: int
    lr: float
    optimizer: str = "sgd"
    schedule: str = "poly"
    weight_decay: float = 0.0
    momentum: float = 0.9
    warmup: int = 0
    clip_norm: float = 0.0
    precision: str = "fp32"
    seed: int = 0
    accumulate: int = 1
    steps: int | None = None
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


def make_scheduler(optimizer: torch.optim.Optimizer, name: str, steps: int,
                   warmup: int = 0) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate per step: `poly` (1 - t)^0.9, `cosine` to zero or `constant`, after a linear warm-up."""
    shape = {"poly": lambda t: (1 - t) ** 0.9, "cosine": lambda t: 0.5 + 0.5 * math.cos(math.pi * t),
             "constant": lambda t: 1.0}[name]
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / max(warmup, 1)) * shape(min(step / max(steps, 1), 1.0)))


class _Joined(nn.Module):
    """A step as a module that owns what it trains, so that DistributedDataParallel can wrap both."""

    def __init__(self, step: Callable[[object], dict[str, Tensor]], modules: dict[str, nn.Module]):
        super().__init__()
        self.step, self.trained = step, nn.ModuleDict(modules)

    def forward(self, batch: object) -> dict[str, Tensor]:
        return self.step(batch)


def _synchronise(modules: nn.Module, device: torch.device) -> None:
    """Make the batch norms that are in training mode those of all processes."""
    if device.type != "cuda":
        raise InputError("--sync-bn: torch synchronises batch norm on GPUs only; --frozen-bn needs none")
    for parent in list(modules.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and child.training:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


def fit(run: Run, loader: DataLoader, step: Callable[[object], dict[str, Tensor]],
        modules: dict[str, nn.Module], groups: list[dict], training: Training) -> None:
    """Train `modules` by `step(batch) -> {"loss": scalar, other terms}`; checkpoints and resumes per epoch.

    Batches have `names` and `to(device)`. A module with `start_epoch(epoch)` or `end_epoch(epoch)` is told
    each epoch's number. Several processes each take their part of every batch and average the gradients: a
    loss that is no mean over images scales its terms (`distributed.weight_of`, `average`).
    InputError on a loss that is not finite names the batch's images; it is also raised on such weights.
    """
    optimizer = make_optimizer(groups, training)
    device = optimizer.param_groups[0]["params"][0].device
    per_epoch = -(-len(loader) // training.accumulate)
    scheduler = make_scheduler(optimizer, training.schedule, training.steps or training.epochs * per_epoch,
                               training.warmup)
    stateful = {**modules, "optimizer": optimizer, "scheduler": scheduler}
    run.make_room(sum(p.nbytes for module in modules.values() for p in module.parameters()))
    joined = _Joined(step, modules)
    if world_size() > 1:
        if training.sync_bn:
            _synchronise(joined.train(), device)
        joined = DistributedDataParallel(joined)
    for epoch in range(run.restore(training.label, **stateful), training.epochs):
        seed_everything(training.seed, epoch)
        loader.sampler.set_epoch(epoch)
        for module in modules.values():
            module.train()
            if hasattr(module, "start_epoch"):
                module.start_epoch(epoch)
        batches = len(loader)
        if training.steps is not None:
            batches = min(batches, (training.steps - scheduler.last_epoch) * training.accumulate)
        images = world_size() * min(batches * loader.batch_size, len(loader.sampler))
        means = _train_epoch(loader, joined, optimizer, scheduler, training,
                             Progress(f"{training.label} {epoch + 1}/{training.epochs}", images), device)
        for module in modules.values():
            if hasattr(module, "end_epoch"):
                module.end_epoch(epoch)
        if not all(p.isfinite().all() for module in modules.values() for p in module.parameters()):
            raise InputError(f"{training.label}: weights are not finite after epoch {epoch + 1}; lower --lr "
                             "or clip gradients by --clip-norm")
        run.log(label=training.label, epoch=epoch + 1, lr=scheduler.get_last_lr()[0], **means)
        run.save(training.label, epoch + 1, **stateful)


def _train_epoch(loader: DataLoader, joined: nn.Module,
                 optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler,
                 training: Training, progress: Progress, device: torch.device) -> dict[str, float]:
    """One pass over the loader; the mean of each term."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sums: dict[str, Tensor] = {}
    for count, batch in enumerate(loader, 1):
        complete = count % training.accumulate == 0 or count == len(loader)
        with nullcontext() if complete or world_size() == 1 else joined.no_sync():
            with autocast(training.precision, device):
                terms = joined(batch.to(device))
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
        if training.steps is not None and scheduler.last_epoch >= training.steps:
            break
    means = {name: float(average(value)) / count for name, value in sums.items()}
    progress.close(**means)
    return means
