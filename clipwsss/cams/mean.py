"""CAM files that are the mean of those of several makers."""
from collections.abc import Sequence
from pathlib import Path

import torch

from ..datasets import TagDataset
from ..distributed import barrier, shard
from ..progress import Progress
from .cam_files import read_cam, resize_cam
from .clip_maps import EPSILON, save_maps
from .maps import min_max

MEANS = ("mean", "geometric")


def write_mean_cams(dataset: TagDataset, parts: Sequence[Path], folder: Path, kind: str,
                    fmt: str = "npz") -> None:
    """Write each image's mean of the CAM files in several folders.

    Maps are scaled to [0, 1] before and after. kind: the arithmetic `mean`, or the `geometric` one, which is
    small where any of the maps is. Where a maker sees nothing of a class, so that its map has one value
    everywhere, both kinds are the other maker's map alone. The files of all folders hold the same classes.
    fmt: see `write_cam`. Several processes each write their share. InputError names a file that is missing or
    damaged.
    """
    own_part = shard(range(len(dataset)))
    progress = Progress("mean of the CAMs", len(own_part))
    for index in own_part:
        name = dataset.names[index]
        files = [read_cam(part, name) for part in parts]
        maps = torch.stack([torch.from_numpy(resize_cam(file, dataset.sizes[index])) for file in files])
        maps = min_max(maps, EPSILON)
        joined = maps.mean(dim=0)
        if kind == "geometric":
            complete = (maps.amax(dim=(2, 3)) > 0).all(dim=0)  # [k]: classes that every maker sees
            joined[complete] = maps[:, complete].prod(dim=0) ** (1 / len(parts))
        save_maps(folder, name, torch.from_numpy(files[0].keys), min_max(joined, EPSILON), fmt)
        progress.update(1)
    progress.close()
    barrier()
