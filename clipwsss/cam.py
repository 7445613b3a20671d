"""Multi-scale class activation maps of a generator, and their files for a whole split."""
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from .cam_files import write_cam
from .datasets import TagDataset, collate
from .engine import Progress, rank, world_size

STRIDE = 4  # CAM files hold maps at a quarter of the image's size, as IRN's do


@torch.inference_mode()
def multi_scale_maps(generator: nn.Module, images: torch.Tensor, scales: Sequence[float] = (1.0, 0.5, 1.5, 2.0),
                     flip: bool = True) -> list[torch.Tensor]:
    """Rectified maps [B,K,h,w] of each scale, image and mirror image added, of images [B,3,H,W] in [0,1].

    Source: IRN's make_cam (bicubic resizing; image and flip in one batch).
    """
    height, width = images.shape[-2:]
    outputs = []
    for scale in scales:
        size = (round(height * scale), round(width * scale))
        scaled = images if scale == 1 else F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        if flip:
            maps, mirrored = F.relu(generator(torch.cat([scaled, scaled.flip(-1)]))).chunk(2)
            outputs.append(maps + mirrored.flip(-1))
        else:
            outputs.append(F.relu(generator(scaled)))
    return outputs


def merge_scales(outputs: list[torch.Tensor], size: tuple[int, int], multiple: int = 1) -> torch.Tensor:
    """Sum of all scales' maps resized to `size`, each map divided by its own maximum: [B,K,*size] in [0,1].

    Maps are resized to `size` rounded up to `multiple` and cropped, as IRN's high-resolution CAMs are (16).
    """
    height, width = size
    padded = [math.ceil(side / multiple) * multiple for side in size]
    total = sum(F.interpolate(maps.float(), padded, mode="bilinear", align_corners=False) for maps in outputs)
    total = total[..., :height, :width]
    return total / (total.amax(dim=(2, 3), keepdim=True) + 1e-5)


def size_batches(dataset: TagDataset, batch_size: int) -> list[list[int]]:
    """Index batches of images of one size each, so that CAMs of many images are one forward pass."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index in range(rank(), len(dataset), world_size()):
        groups.setdefault(dataset.image_size(index), []).append(index)
    return [group[i:i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


def write_cams(generator: nn.Module, dataset: TagDataset, folder: Path, device: torch.device,
               scales: Sequence[float] = (1.0, 0.5, 1.5, 2.0), flip: bool = True, batch_size: int = 1, workers: int = 0,
               fmt: str = "npz", skip: frozenset[str] = frozenset()) -> None:
    """Write the CAM file of every image of the split, of the classes its tags name; names in `skip` are left."""
    batches = [[i for i in batch if dataset.names[i] not in skip] for batch in size_batches(dataset, batch_size)]
    batches = [batch for batch in batches if batch]
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate)
    progress = Progress("CAMs", sum(map(len, batches)))
    generator.eval()
    for batch in loader:
        height, width = batch.images.shape[-2:]
        outputs = multi_scale_maps(generator, batch.images.to(device), scales, flip)
        cams = merge_scales(outputs, (math.ceil(height / STRIDE), math.ceil(width / STRIDE)))
        for row, name in enumerate(batch.names):
            keys = batch.labels[row].nonzero()[:, 0]
            here = keys.to(device)
            high = None
            if fmt == "irn":
                present = [maps[row:row + 1, here] for maps in outputs]
                high = merge_scales(present, (height, width), multiple=16)[0].cpu().numpy()
            write_cam(folder, name, keys.numpy(), cams[row, here].cpu().numpy(), fmt, high)
        progress.update(len(batch.names))
    progress.close()
