"""One script in several processes, as torchrun starts them: who is who, shares of lists, sums over all.

Without torchrun there is one process: it is the main one, its share is the whole list, its sums are final.
"""
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

LAUNCHED = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # torchrun's variables
PATIENCE = timedelta(days=7)  # a dead process is seen by torchrun; a slow one is waited for


def rank() -> int:
    """This process's number among all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's number on its machine, which is that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that logs, saves and prints."""
    return rank() == 0


@contextmanager
def processes() -> Iterator[None]:
    """Inside the block the processes that torchrun started know each other (NCCL on GPUs, gloo on CPUs).

    The main one alone prints. An error in one ends all: torchrun stops the others, and only the first to
    fail says why, whatever its rank. All leave the block together.
    """
    if not LAUNCHED <= os.environ.keys():
        yield
        return
    store, number, count = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
    spoken = sys.stdout, sys.stderr
    with open(os.devnull, "w") as silence:
        if number:
            sys.stdout = sys.stderr = silence
        try:
            yield
            barrier()
        except BaseException as error:
            told_all = isinstance(error, SystemExit) and not error.code  # --help, --dry-run
            if not told_all and not _first(store):
                time.sleep(10)  # torchrun ends this process when the first one is gone
                os._exit(1)
            sys.stdout, sys.stderr = spoken
            raise
        sys.stdout, sys.stderr = spoken
    dist.destroy_process_group()


def _first(store: dist.Store) -> bool:
    """Whether no other process has failed before this one."""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # the store has gone with the process that failed
        return False


def gather(value: object) -> list:
    """Every process's value, in the order of their numbers; all wait for each other."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until all processes are here: what they have written can be read."""
    gather(None)


def broadcast(value: object) -> object:
    """The main process's value, which the others take for theirs."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def shard(items: Sequence) -> Sequence:
    """This process's part of a list; the parts of all in turn are the list."""
    first, last = (number * len(items) // world_size() for number in (rank(), rank() + 1))
    return items[first:last]


def mean_over_processes(value: Tensor) -> Tensor:
    """A tensor's mean over the processes, without gradients."""
    if world_size() == 1:
        return value
    value = value.detach().float().clone()
    dist.all_reduce(value)
    return value / world_size()
