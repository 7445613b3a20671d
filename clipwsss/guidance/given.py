"""Given CAM files, whatever made them, under frozen CLIP: words are selected and prompts learned by them."""
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..cams.cam_files import check_cam, list_cams, read_cam, resize_cam
from ..clip import CLIP
from ..datasets import Batch, TagDataset
from ..errors import InputError
from ..progress import Progress
from .regions import encode_regions
from .steps import Regions


def check_cams(cams: Path, dataset: TagDataset, whole: bool) -> None:
    """InputError where an image has no CAM file; with `whole` each file is read and must fit its image."""
    if absent := set(dataset.names) - set(list_cams(cams)):
        raise InputError(f"{cams}: no CAM file of image {min(absent)}, nor of {len(absent) - 1} others")
    for index, name in enumerate(dataset.names if whole else ()):
        check_cam(read_cam(cams, name), cams / name, dataset.image_size(index), len(dataset.classes),
                  dataset.labels[index].nonzero()[:, 0].tolist())


def cam_regions(clip: CLIP, dataset: TagDataset, cams: Path, device: torch.device,
                loader: DataLoader) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """Image names, classes [N] and foreground features [N,D] of every present class by its CAM file."""
    progress = Progress("selecting words", len(dataset))
    for batch in loader:
        maps = torch.zeros(*batch.labels.shape, *batch.images.shape[-2:])
        for index, name in enumerate(batch.names):
            cam = check_cam(read_cam(cams, name), cams / name, maps.shape[-2:], maps.shape[1],
                            batch.labels[index].nonzero()[:, 0].tolist())
            maps[index, torch.from_numpy(cam.keys)] = torch.from_numpy(resize_cam(cam, maps.shape[-2:]))
        pairs = batch.labels.to(device).nonzero(as_tuple=True)
        with torch.inference_mode():
            regions, _ = encode_regions(clip, batch.images.to(device), pairs[0], maps.to(device)[pairs],
                                        with_background=False)
        yield [batch.names[i] for i in pairs[0].tolist()], pairs[1], regions
        progress.update(len(batch.names))
    progress.close()


class GivenGuide(NamedTuple):
    """CAM files in the place of a generator: their maps are P, of whole images."""
    cams: Path
    clip: CLIP

    def regions(self, batch: Batch, epsilon: float = 0.0) -> Regions:
        """The batch's regions by its present classes' CAM files."""
        pairs = batch.labels.nonzero(as_tuple=True)
        maps = torch.zeros(*batch.labels.shape, *batch.images.shape[-2:])
        for index, name in enumerate(batch.names):
            cam = read_cam(self.cams, name)
            maps[index, torch.from_numpy(cam.keys)] = torch.from_numpy(resize_cam(cam, maps.shape[-2:]))
        maps = maps.to(batch.images.device)
        foreground, background = encode_regions(self.clip, batch.images, pairs[0], maps[pairs])
        return Regions([batch.names[i] for i in pairs[0].tolist()], pairs[1], maps, maps[pairs],
                       foreground, background)
