"""Loaders of `Batch`es: shuffled ones for training, and whole images of one size for inference."""
from collections.abc import Container

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .base import TagDataset, collate


def make_loader(dataset: Dataset, batch_size: int, workers: int = 0, shuffle: bool = True, seed: int = 0,
                drop_last: bool = False) -> DataLoader:
    """A loader whose order depends on (seed, epoch) alone: `loader.sampler.set_epoch` before each epoch.

    Workers start anew each epoch: persistent ones would carry their random state over it and break resuming.
    """
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=shuffle, seed=seed)
    return DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, collate_fn=collate,
                      drop_last=drop_last and len(dataset) >= batch_size,
                      pin_memory=torch.cuda.is_available())


def size_loader(dataset: TagDataset, batch_size: int, workers: int = 0,
                done: Container[str] = ()) -> DataLoader:
    """The images but those in `done`, in batches of one size each (one forward pass for many)."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, name in enumerate(dataset.names):
        if name not in done:
            groups.setdefault(dataset.image_size(index), []).append(index)
    batches = [group[i:i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
    return DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate)
