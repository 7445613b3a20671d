"""CAM generators: what each kind has in common, maps over several scales, and the CAM files of a split."""
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..datasets import TagDataset
from ..distributed import barrier
from ..errors import InputError
from ..networks.resnet import fuse_batch_norm
from ..progress import Progress
from ..training import use_bf16
from .cam_files import CAM_STRIDE, FORMATS, write_cam

SCALES = (1.0, 0.5, 1.5, 2.0)


class MapGenerator(nn.Module):
    """Turns images [B,3,H,W] in [0,1] into a map of each class: `forward(images) -> [B,K,h,w]`, in float32.

    config: the plain values that build it again, among them its `backbone` and `classes`.
    input_multiple: the sides of an input image must be multiples of this for its maps to cover it whole.
    map_multiple: the maps cover the image rounded up to a multiple of this.
    from_minimum: CAM files scale each map from its minimum to its maximum, not from zero.
    parts: what `learn_only` can select: the name of a part, and how the names of its parameters begin.
    """
    config: dict
    input_multiple = 1
    map_multiple = 1
    from_minimum = False
    parts: Mapping[str, tuple[str, ...]] = {}

    def classify(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [B,K] by name, each trained by POLE eq. 1; the first ones are the classifier's scores."""
        raise NotImplementedError

    def parameter_groups(self, lr: float, head_ratio: float) -> list[dict]:
        """Optimiser groups: the backbone at `lr`, the new layers at `head_ratio` times it."""
        raise NotImplementedError

    def learn_only(self, part: str) -> None:
        """Freeze all parameters except those of one of `parts`; InputError lists the parts that there are."""
        if part not in self.parts:
            raise InputError(f"--tune {part}: this generator has {', '.join(('all', *self.parts))}")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(self.parts[part]))


def min_max(maps: Tensor, epsilon: float) -> Tensor:
    """Maps [..,h,w], each scaled by its own extremes: (m - min) / (max - min + epsilon).

    Source: SemPLeS' release (epsilon 0.1; 0.0001 while prompts are learned). Gradients reach the extremes.
    """
    low = maps.amin(dim=(-2, -1), keepdim=True)
    high = maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low + epsilon)


def rescale(images: Tensor, scale: float = 1.0, multiple: int = 1) -> Tensor:
    """Images [B,3,H,W] in [0,1] at a scale (bicubic), its sides rounded to multiples of `multiple`."""
    size = [max(1, round(side * scale / multiple)) * multiple for side in images.shape[-2:]]
    if list(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


@torch.inference_mode()
def multi_scale_maps(generator: MapGenerator, images: Tensor, scales: Sequence[float] = SCALES,
                     flip: bool = True) -> list[Tensor]:
    """Rectified maps [B,K,h,w] of images [B,3,H,W] in [0,1] at each scale.

    flip: the maps of the mirror image are added. Source: IRN's make_cam (bicubic resizing; an image and its
    mirror image are in one batch).
    """
    outputs = []
    for scale in scales:
        scaled = rescale(images, scale, generator.input_multiple)
        if flip:
            both = torch.cat([scaled, scaled.flip(-1)])
            maps, mirrored = F.relu(generator(both)).chunk(2)
            outputs.append(maps + mirrored.flip(-1))
        else:
            outputs.append(F.relu(generator(scaled)))
    return outputs


def merge_scales(outputs: list[Tensor], size: tuple[int, int], multiple: int = 1,
                 from_minimum: bool = False) -> Tensor:
    """The sum of all scales' maps at `size` (H, W), each map divided by its own maximum: [B,K,H,W] in [0,1].

    The maps are resized to `size` rounded up to `multiple` and cropped, as IRN's high-resolution CAMs are
    (multiple 16). from_minimum: each map is scaled from its own minimum instead of from zero (WeakTr).
    """
    height, width = size
    padded = [math.ceil(side / multiple) * multiple for side in size]
    total = sum(F.interpolate(maps, padded, mode="bilinear", align_corners=False) for maps in outputs)
    total = total[..., :height, :width]
    if from_minimum:
        return min_max(total, 1e-8)
    return total / (total.amax(dim=(2, 3), keepdim=True) + 1e-5)


def finished_cams(dataset: TagDataset, folder: Path, fmt: str = "npz") -> set[str]:
    """Names of the images that have a CAM file of this format in a folder."""
    return {name for name in dataset.names if (folder / f"{name}{FORMATS[fmt]}").exists()}


def write_cams(generator: MapGenerator, loader: DataLoader, folder: Path, scales: Sequence[float] = SCALES,
               flip: bool = True, fmt: str = "npz", precision: str = "fp32") -> None:
    """Write the CAM file of each image of a loader, with the maps of the classes that its tags name.

    loader: batches of whole images of one size, as `size_loader` makes them. fmt: see `write_cam`.
    precision: see `use_bf16`. Several processes each write their part of the files; all files are there when
    the function returns.
    """
    device = next(generator.parameters()).device
    progress = Progress("CAMs", sum(len(batch) for batch in loader.batch_sampler))
    network = fuse_batch_norm(generator)
    for batch in loader:
        height, width = batch.images.shape[-2:]
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(precision, device)):
            outputs = multi_scale_maps(network, batch.images.to(device, non_blocking=True), scales, flip)
        small = (math.ceil(height / CAM_STRIDE), math.ceil(width / CAM_STRIDE))
        cams = merge_scales(outputs, small, from_minimum=generator.from_minimum)
        for index, name in enumerate(batch.names):
            keys = batch.labels[index].nonzero()[:, 0]
            present = keys.to(device)
            high_res = None
            if fmt != "npz":
                maps = [output[index:index + 1, present] for output in outputs]
                merged = merge_scales(maps, (height, width), generator.map_multiple, generator.from_minimum)
                high_res = merged[0].cpu()
            write_cam(folder, name, keys, cams[index, present].cpu(), fmt, high_res)
        progress.update(len(batch.names))
    progress.close()
    barrier()
