"""Loaders of `Batch`es: shuffled ones for training, and whole images of one size for inference."""
from collections.abc import Container, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..distributed import broadcast, rank, world_size
from ..errors import InputError
from .base import TagDataset, collate


class Order(DistributedSampler):
    """This process's (image number, seed of its random draws) of an epoch, decided by (seed, epoch) alone.

    The processes' batches together are the one process's batch; InputError where they cannot share it.
    """

    def __init__(self, dataset: Dataset, batch_size: int, shuffle: bool, seed: int, drop_last: bool):
        super().__init__(dataset, world_size(), rank(), shuffle, seed, drop_last)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        count, images = self.num_replicas, len(self.dataset)
        if count > 1 and (self.batch_size % count or self.batch_size > images):
            raise InputError(f"--batch-size {self.batch_size}: {count} processes share it, so it must be a "
                             f"multiple of {count} and at most the number of images, {images}")
        for step, index in enumerate(super().__iter__()):
            drawn = np.random.SeedSequence((self.seed, self.epoch, step * count + self.rank))
            yield index, int(drawn.generate_state(1)[0])


class SeededDataset(Dataset):
    """A data set by `Order`'s items: an image's draws are the same in any process and beside any others."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, item: tuple[int, int]) -> object:
        index, seed = item
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.dataset[index]


def make_loader(dataset: Dataset, batch_size: int, workers: int = 0, shuffle: bool = True, seed: int = 0,
                drop_last: bool = False) -> DataLoader:
    """A loader whose images and draws depend on (seed, epoch) alone: `loader.sampler.set_epoch` before each.

    batch_size: of all processes together, which take equal parts of whole batches. Workers start anew each
    epoch, with its number.
    """
    drop_last = len(dataset) >= batch_size and (drop_last or world_size() > 1)
    order = Order(dataset, batch_size, shuffle, seed, drop_last)
    return DataLoader(SeededDataset(dataset), max(1, batch_size // world_size()), sampler=order, num_workers=workers,
                      collate_fn=collate, drop_last=drop_last, pin_memory=torch.cuda.is_available())


def size_loader(dataset: TagDataset, batch_size: int, workers: int = 0,
                done: Container[str] = ()) -> DataLoader:
    """The images but those in `done`, in batches of one size each (one forward pass for many).

    Of several processes each has its share of the batches; the main one's `done` holds for all.
    """
    done = broadcast(done)
    groups: dict[tuple[int, int], list[int]] = {}
    for index, name in enumerate(dataset.names):
        if name not in done:
            groups.setdefault(dataset.image_size(index), []).append(index)
    batches = [group[i:i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
    return DataLoader(dataset, batch_sampler=batches[rank()::world_size()], num_workers=workers,
                      collate_fn=collate, pin_memory=torch.cuda.is_available())
