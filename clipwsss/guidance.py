"""CLIP's guidance of a map generator: masked regions encoded in one batch, adapters, the weighted terms."""
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from . import losses
from .clip import CLIP, CheckpointError, load
from .errors import InputError
from .prompts import ASSETS


def load_clip(name: str, device: torch.device, cache: Path | None = None) -> CLIP:
    """CLIP by published name or file, frozen; `toy` is the tiny one that ships with the toy world.

    InputError names a file that is missing, damaged or no CLIP.
    """
    try:
        return load(ASSETS / "toy_clip.pt" if name == "toy" else name, device, cache)
    except CheckpointError as error:
        raise InputError(str(error)) from error


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


class Adapter(nn.Module):
    """Residual bottleneck on features [N,D]: r * ReLU(x W1) W2 + (1 - r) * x (POLE eqs. 7-8, CLIP-Adapter).

    W1 has D/4 columns; r starts at 0.2. kind `fixed` keeps r that scalar, `learnable` learns one r per
    dimension (the paper leaves its shape open), `none` returns x.
    """

    def __init__(self, dim: int, kind: str):
        super().__init__()
        self.kind = kind
        if kind != "none":
            self.down, self.up = nn.Linear(dim, dim // 4, bias=False), nn.Linear(dim // 4, dim, bias=False)
        self.ratio = nn.Parameter(torch.full((dim,), 0.2)) if kind == "learnable" else 0.2

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Adapted features, not normalised."""
        if self.kind == "none":
            return features
        return self.ratio * self.up(F.relu(self.down(features))) + (1 - self.ratio) * features


def guidance_terms(foreground: torch.Tensor, background: torch.Tensor, text: torch.Tensor,
                   suppressed: torch.Tensor, probabilities: torch.Tensor,
                   adapters: tuple[nn.Module, nn.Module], weights: dict[str, float], threshold: float,
                   reduction: str) -> dict[str, torch.Tensor]:
    """The terms that train the generator and their sum `loss`, weighted by `weights` of each term's name.

    foreground, background, text [N,D]; suppressed [N,M,D], M may be 0; probabilities: what the area term
    averages; adapters: (image side, text side). fg and bg are CLIMS' OTM and BTM, POLE eq. 5, SemPLeS eq. 1;
    suppress is CLIMS' CBS or SemPLeS eq. 3; area is CLIMS' REG.
    """
    image_side, text_side = adapters
    adapted = text_side(text)
    terms = {
        "fg": losses.attract(losses.similarity(image_side(foreground), adapted)),
        "bg": losses.repel(losses.similarity(image_side(background), adapted)),
        "suppress": losses.suppress(losses.similarity(foreground, suppressed), threshold, reduction),
        "area": losses.area(probabilities),
    }
    return {"loss": sum(weights[name] * value for name, value in terms.items()), **terms}
