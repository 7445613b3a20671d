"""CLIP's guidance of a map generator: masked regions encoded in one batch, adapters, the weighted terms."""
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


def encode_regions(clip: CLIP, images: torch.Tensor, image_index: torch.Tensor, masks: torch.Tensor,
                   with_background: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Normalised features [N,D] of X*P and X*(1 - P) for N masks P [N,h,w] in [0,1].

    images [B,3,H,W] in [0,1], each mask's by `image_index` [N], go through CLIP at its own resolution in one
    batch; P multiplies the normalised image, so that a masked pixel has the mean colour (CLIMS eq. 3, POLE
    sec. 3.2, SemPLeS eq. 1). Not as CLIMS' release: CLIP's own normalisation, antialiasing, half-pixel grid.
    """
    size = (clip.input_resolution, clip.input_resolution)
    view = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    view = clip.normalise(view)[image_index]
    mask = F.interpolate(masks[:, None].float(), size, mode="bilinear", align_corners=False)
    regions = torch.cat([view * mask, view * (1 - mask)]) if with_background else view * mask
    features = F.normalize(clip.encode_image(regions, normalised=True).float(), dim=-1)
    return (*features.chunk(2),) if with_background else (features, None)
