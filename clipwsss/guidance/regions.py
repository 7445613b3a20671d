"""CLIP's guidance of a map generator: masked regions encoded in one batch, adapters, the weighted terms."""
from pathlib import Path

import torch
import torch.nn.functional as F

from ..clip import CLIP, load
from ..errors import input_errors
from ..toy.clip import load_toy_clip


def load_clip(name: str, device: torch.device, cache: Path | None = None) -> CLIP:
    """CLIP by published name or file, frozen; `toy` is the toy world's tiny one, `toy:FILE` another such.

    InputError names a file that is missing, damaged or no CLIP.
    """
    kind, _, path = name.partition(":")
    if kind == "toy":
        return load_toy_clip(*([Path(path)] if path else [])).to(device)
    with input_errors():
        return load(name, device, cache)


def encode_regions(clip: CLIP, images: torch.Tensor, probabilities: torch.Tensor,
                   pairs: tuple[torch.Tensor, torch.Tensor],
                   with_background: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Normalised features [N,D] of X*P_k and X*(1 - P_k) for N pairs (image index [N], class index [N]).

    images [B,3,H,W] and probabilities P [B,K,h,w] in [0,1] go through CLIP at its own resolution in one
    batch; P multiplies the normalised image, so that a masked pixel has the mean colour (CLIMS eq. 3, POLE
    sec. 3.2, SemPLeS eq. 1). Not as CLIMS' release: CLIP's own normalisation, antialiasing, half-pixel grid.
    """
    size = (clip.input_resolution, clip.input_resolution)
    image_index, class_index = pairs
    view = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    view = clip.normalise(view)[image_index]
    mask = F.interpolate(probabilities[image_index, class_index][:, None].float(), size, mode="bilinear",
                         align_corners=False)
    regions = torch.cat([view * mask, view * (1 - mask)]) if with_background else view * mask
    features = F.normalize(clip.encode_image(regions, normalised=True).float(), dim=-1)
    return (*features.chunk(2),) if with_background else (features, None)
