"""One script in several processes, as torchrun starts them: ranks, parts of lists, values of all processes.

Without torchrun there is one process. It is the main process, its part of a list is the whole list, and its
values are those of all processes.
"""
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # not used here, see `processes`
from torch import Tensor

# The environment variables that torchrun sets in each process.
LAUNCHED = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
# When one process dies, torchrun ends all, so that none waits for a dead one. A slow one may take days.
TIMEOUT = timedelta(days=7)


def rank() -> int:
    """The number of this process among all processes, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """The number of this process among those of its machine, from 0: the number of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


@contextmanager
def processes() -> Iterator[None]:
    """Connect the processes that torchrun started for the duration of the block (NCCL on GPUs, gloo on CPUs).

    All processes leave the block together. An error in one of them ends all: the error of the process that
    fails first, whatever its rank, leaves the block. Any other process that fails ends silently, and torchrun
    stops the rest.

    The functions of torch.distributed.nn take the group that exists when they are first imported as a
    default. If that is this one, as it may be when a library imports them within the block, its threads
    outlive the block, and now and then the process ends with SIGABRT although its work is done. This module
    therefore imports them itself.
    """
    if not LAUNCHED <= os.environ.keys():
        yield
        return
    store, number, count = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
    try:
        yield
        barrier()
    except BaseException as error:
        is_failure = not isinstance(error, SystemExit) or error.code  # --help and --dry-run exit with code 0
        if is_failure and not _fails_first(store):
            time.sleep(10)  # torchrun ends this process as soon as the first one is gone
            os._exit(1)
        raise
    dist.destroy_process_group()


def _fails_first(store: dist.Store) -> bool:
    """Whether no other process has failed before this one."""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # the store went away with the process that failed
        return False


def gather(value: object) -> list:
    """The values of all processes in the order of their ranks. The processes wait for each other."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until all processes have called this. Afterwards each can read what the others have written."""
    gather(None)


def broadcast(value: object) -> object:
    """The main process's value in all processes."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def shard(items: Sequence) -> Sequence:
    """This process's contiguous part of a list. The parts in the order of the ranks make up the list."""
    first = rank() * len(items) // world_size()
    after_last = (rank() + 1) * len(items) // world_size()
    return items[first:after_last]


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes, without gradients."""
    if world_size() == 1:
        return value
    value = value.detach().float().clone()
    dist.all_reduce(value)
    return value / world_size()
