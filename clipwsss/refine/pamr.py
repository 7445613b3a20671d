"""Pixel-adaptive mask refinement (Araslanov & Roth, CVPR 2020): scores averaged over like neighbours."""
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def neighbours(maps: Tensor, dilations: tuple[int, ...] = DILATIONS) -> Iterator[Tensor]:
    """Maps [C,H,W] as each pixel's neighbours have them, 8 for each dilation in turn.

    Beyond the border the nearest pixel's value counts.
    """
    height, width = maps.shape[-2:]
    for rate in dilations:
        padded = F.pad(maps[None], (rate,) * 4, mode="replicate")[0]
        for dy, dx in NEIGHBOURS:
            top, left = rate * (1 + dy), rate * (1 + dx)
            yield padded[:, top:top + height, left:left + width]


def pixel_affinity(image: Tensor, dilations: tuple[int, ...] = DILATIONS) -> Tensor:
    """Weights [n,H,W] of a pixel's n neighbours that sum to one, from an image [3,H,W] of any scale.

    Softmax over neighbours of -mean over channels of |difference| / (0.1 * deviation), the deviation among
    all neighbours and, once for each dilation, the pixel itself (release).
    """
    around = torch.stack(list(neighbours(image, dilations)), 1)
    own = image[:, None]
    spread = torch.cat([around, own.expand(-1, len(dilations), -1, -1)], 1).std(1, keepdim=True)
    return (-((own - around).abs() / (1e-8 + 0.1 * spread)).mean(0)).softmax(0)


def pamr(image: Tensor, scores: Tensor, iterations: int = 10,
         dilations: tuple[int, ...] = DILATIONS) -> Tensor:
    """Scores [C,H,W], background among them, averaged `iterations` times by the image's `pixel_affinity`."""
    weights = pixel_affinity(image, dilations)
    for _ in range(iterations):
        shares = (weight * shifted for weight, shifted in zip(weights, neighbours(scores, dilations)))
        scores = sum(shares)
    return scores
