"""Pixel-adaptive mask refinement (Araslanov & Roth, CVPR 2020): scores averaged over like neighbours."""
import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def neighbours(maps: Tensor, dilations: tuple[int, ...] = DILATIONS) -> Tensor:
    """Values of each pixel's 8 neighbours at every dilation: maps [C,H,W] -> [C,8 * len(dilations),H,W].

    Beyond the border the nearest pixel's value counts.
    """
    height, width = maps.shape[-2:]
    reach = max(dilations)
    padded = F.pad(maps[None], (reach,) * 4, mode="replicate")[0]
    starts = [(reach + rate * dy, reach + rate * dx) for rate in dilations for dy, dx in NEIGHBOURS]
    return torch.stack([padded[:, top:top + height, left:left + width] for top, left in starts], 1)


def pixel_affinity(image: Tensor, dilations: tuple[int, ...] = DILATIONS) -> Tensor:
    """Weights [n,H,W] of a pixel's n neighbours that sum to one, from an image [3,H,W] of any scale.

    Softmax over neighbours of -mean over channels of |difference| / (0.1 * deviation), the deviation among
    all neighbours and, once for each dilation, the pixel itself (release).
    """
    around, own = neighbours(image, dilations), image[:, None]
    spread = torch.cat([around, own.expand(-1, len(dilations), -1, -1)], 1).std(1, keepdim=True)
    unlike = (own - around).abs() / (1e-8 + 0.1 * spread)
    return (-unlike.mean(0)).softmax(0)


def pamr(image: Tensor, scores: Tensor, iterations: int = 10,
         dilations: tuple[int, ...] = DILATIONS) -> Tensor:
    """Scores [C,H,W], background among them, averaged `iterations` times by the image's `pixel_affinity`."""
    weights = pixel_affinity(image, dilations)
    for _ in range(iterations):
        scores = (neighbours(scores, dilations) * weights).sum(1)
    return scores
