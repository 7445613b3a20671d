"""CLIP's guidance of a map generator: masked regions encoded in one batch, adapters, the weighted terms."""
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F

from ..clip import CLIP, CheckpointError, load
from ..errors import InputError
from ..toy.clip import load_toy_clip


def load_clip(name: str, device: torch.device, cache: Path | None = None) -> CLIP:
    """CLIP by published name or file, frozen; `toy` is the tiny one that ships with the toy world.

    A file may hold a toy CLIP too. InputError names one that is missing, damaged or no CLIP.
    """
    if name == "toy":
        return load_toy_clip().to(device)
    try:
        return load(name, device, cache)
    except CheckpointError as error:
        with suppress(InputError):
            return load_toy_clip(Path(name)).to(device)
        raise InputError(str(error)) from error


def min_max(maps: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Maps [..,h,w], each scaled by its own extremes: (m - min) / (max - min + epsilon).

    Source: SemPLeS' release (epsilon 0.1, 0.0001 while prompts are learned). Gradients reach the extremes.
    """
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low + epsilon)


def encode_regions(clip: CLIP, images: torch.Tensor, maps: torch.Tensor,
                   pairs: tuple[torch.Tensor, torch.Tensor], with_background: bool = True,
                   scale: Callable[[torch.Tensor], torch.Tensor] | None = None,
                   ) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Normalised features [N,D] of X*P_k and X*(1 - P_k) for N pairs (image index [N], class index [N]).

    images [B,3,H,W] in [0,1] and maps [B,K,h,w] go through CLIP at its own resolution in one batch. The maps
    are P in [0,1], or become it there by `scale`; P multiplies the normalised image, so that a masked pixel
    has the mean colour (CLIMS eq. 3, POLE sec. 3.2, SemPLeS eq. 1). Not as CLIMS' release: CLIP's own
    normalisation, antialiasing, half-pixel grid.
    """
    size = (clip.input_resolution, clip.input_resolution)
    image_index, class_index = pairs
    view = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    view = clip.normalise(view)[image_index]
    mask = F.interpolate(maps[image_index, class_index][:, None].float(), size, mode="bilinear",
                         align_corners=False)
    mask = mask if scale is None else scale(mask)
    regions = torch.cat([view * mask, view * (1 - mask)]) if with_background else view * mask
    features = F.normalize(clip.encode_image(regions, normalised=True).float(), dim=-1)
    return (*features.chunk(2),) if with_background else (features, None)
