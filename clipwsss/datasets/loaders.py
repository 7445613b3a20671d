"""Loaders of `Batch`es: shuffled images for training, and whole images of one size for inference."""
from collections.abc import Container, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..distributed import broadcast, rank, world_size
from ..errors import InputError
from .base import TagDataset, collate


class SeededSampler(DistributedSampler):
    """This process's (image number, seed of its random draws) pairs of an epoch.

    They depend on (seed, epoch) alone: the batches of all processes together are the batch that one process
    would have. InputError, when an epoch begins, if the processes cannot share a batch equally.
    """
    batch_size: int  # of all processes together
    skip: int = 0  # images of this process that are left out at the beginning: an epoch goes on behind them

    def __iter__(self) -> Iterator[tuple[int, int]]:
        processes = self.num_replicas
        images = len(self.dataset)
        if processes > 1 and (self.batch_size % processes or self.batch_size > images):
            raise InputError(f"--batch-size {self.batch_size}: {processes} processes share a batch, so its "
                             f"size must be a multiple of {processes} and at most the number of images, "
                             f"{images}")
        for step, index in enumerate(super().__iter__()):
            if step < self.skip:
                continue
            place = step * processes + self.rank  # in the order of all images of the epoch
            sequence = np.random.SeedSequence((self.seed, self.epoch, place))
            yield index, int(sequence.generate_state(1)[0])


class SeededDataset(Dataset):
    """A data set indexed by the pairs of `SeededSampler`: the random draws of an image follow from its seed.

    So they are the same in any process and beside any other images.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, item: tuple[int, int]) -> object:
        index, seed = item
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.dataset[index]


def make_loader(dataset: Dataset, batch_size: int, workers: int = 0, shuffle: bool = True, seed: int = 0,
                drop_last: bool = False) -> DataLoader:
    """A loader whose images and random draws depend on (seed, epoch) alone.

    Call `loader.sampler.set_epoch(epoch)` before each epoch: workers start anew and take it over.
    batch_size: of all processes together, each of which takes an equal part of every whole batch.
    drop_last: leave out the last images of an epoch where they do not fill a batch.
    """
    processes = world_size()
    drop_last = len(dataset) >= batch_size and (drop_last or processes > 1)
    sampler = SeededSampler(dataset, processes, rank(), shuffle, seed, drop_last)
    sampler.batch_size = batch_size
    return DataLoader(SeededDataset(dataset), max(1, batch_size // processes), sampler=sampler,
                      num_workers=workers, collate_fn=collate, drop_last=drop_last,
                      pin_memory=torch.cuda.is_available())


def size_loader(dataset: TagDataset, batch_size: int, workers: int = 0,
                done: Container[str] = ()) -> DataLoader:
    """The images whose names are not in `done`, in batches of images of one size, for one forward pass each.

    Each process takes its share of the batches; the main process's `done` holds for all.
    """
    done = broadcast(done)
    groups: dict[tuple[int, int], list[int]] = {}
    for index, name in enumerate(dataset.names):
        if name not in done:
            groups.setdefault(dataset.sizes[index], []).append(index)
    batches = []
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            batches.append(group[start:start + batch_size])
    mine = batches[rank()::world_size()]
    return DataLoader(dataset, batch_sampler=mine, num_workers=workers, collate_fn=collate,
                      pin_memory=torch.cuda.is_available())
