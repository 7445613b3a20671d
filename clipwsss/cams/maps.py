"""Multi-scale class activation maps of a generator, and their files for a whole split."""
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..datasets import TagDataset
from ..datasets.loaders import size_loader
from ..datasets.transforms import eval_transform
from ..distributed import barrier
from ..networks.batch_norm import fuse_batch_norm
from ..progress import Progress
from ..training import autocast
from .base import MapGenerator, min_max
from .cam_files import FORMATS, STRIDE, write_cam

SCALES = (1.0, 0.5, 1.5, 2.0)


def rescale(images: torch.Tensor, scale: float = 1.0, multiple: int = 1) -> torch.Tensor:
    """Images at a scale, both sides rounded to a `multiple` of pixels (at least one), bicubic, in [0,1]."""
    size = [max(1, round(side * scale / multiple)) * multiple for side in images.shape[-2:]]
    if list(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


@torch.inference_mode()
def multi_scale_maps(generator: MapGenerator, images: torch.Tensor, scales: Sequence[float] = SCALES,
                     flip: bool = True) -> list[torch.Tensor]:
    """Rectified maps [B,K,h,w] of each scale, image and mirror image added, of images [B,3,H,W] in [0,1].

    Source: IRN's make_cam (bicubic resizing; image and flip in one batch).
    """
    outputs = []
    for scale in scales:
        scaled = rescale(images, scale, generator.input_multiple)
        maps = F.relu(generator(torch.cat([scaled, scaled.flip(-1)]) if flip else scaled))
        if flip:
            maps, mirrored = maps.chunk(2)
            maps = maps + mirrored.flip(-1)
        outputs.append(maps)
    return outputs


def merge_scales(outputs: list[torch.Tensor], size: tuple[int, int], multiple: int = 1,
                 from_minimum: bool = False) -> torch.Tensor:
    """Sum of all scales' maps resized to `size`, each map divided by its own maximum: [B,K,*size] in [0,1].

    Maps are resized to `size` rounded up to `multiple` and cropped, as IRN's high-resolution CAMs are (16).
    from_minimum: each map's own minimum becomes zero first (WeakTr).
    """
    height, width = size
    padded = [math.ceil(side / multiple) * multiple for side in size]
    total = sum(F.interpolate(maps, padded, mode="bilinear", align_corners=False) for maps in outputs)
    total = total[..., :height, :width]
    if from_minimum:
        return min_max(total, 1e-8)
    return total / (total.amax(dim=(2, 3), keepdim=True) + 1e-5)


class CamSettings(NamedTuple):
    """How CAM files are made: scales, mirror images too, images in a forward pass, file format, precision."""
    scales: Sequence[float] = SCALES
    flip: bool = True
    batch_size: int = 1
    workers: int = 0
    fmt: str = "npz"
    precision: str = "fp32"


def write_cams(generator: MapGenerator, dataset: TagDataset, folder: Path,
               settings: CamSettings = CamSettings(), resume: bool = False) -> None:
    """Write each image's CAM file, of the classes its tags name; with `resume` those that are there stay.

    Afterwards those of all processes are there.
    """
    suffix, device = FORMATS[settings.fmt], next(generator.parameters()).device
    done = {name for name in dataset.names if resume and (folder / f"{name}{suffix}").exists()}
    plain = dataset.with_transform(eval_transform(), masks=False)
    loader = size_loader(plain, settings.batch_size, settings.workers, done)
    progress = Progress("CAMs", sum(map(len, loader.batch_sampler)))
    network = fuse_batch_norm(generator)
    for batch in loader:
        height, width = batch.images.shape[-2:]
        with autocast(settings.precision, device):
            images = batch.images.to(device, non_blocking=True)
            outputs = multi_scale_maps(network, images, settings.scales, settings.flip)
        cams = merge_scales(outputs, (math.ceil(height / STRIDE), math.ceil(width / STRIDE)),
                            from_minimum=generator.from_minimum)
        for index, name in enumerate(batch.names):
            keys = batch.labels[index].nonzero()[:, 0]
            present, high = keys.to(device), None
            if settings.fmt != "npz":
                maps = [output[index:index + 1, present] for output in outputs]
                high = merge_scales(maps, (height, width), generator.map_multiple,
                                    generator.from_minimum)[0].cpu()
            write_cam(folder, name, keys, cams[index, present].cpu(), settings.fmt, high)
        progress.update(len(batch.names))
    progress.close()
    barrier()
