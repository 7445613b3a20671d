"""Losses of CLIP guidance: tensors in, scalar out. Leaf module."""
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Weights(NamedTuple):
    """Weights of the terms that train the generator: foreground, background, suppression, area."""
    fg: float = 1.0
    bg: float = 1.0
    suppress: float = 0.0
    area: float = 0.0


class Suppression(NamedTuple):
    """How background prompts repel: above which similarity, and `sum` or `mean` over pairs."""
    threshold: float = 0.0
    reduction: str = "mean"


def similarity(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Cosine of paired features, clamped to [1e-4, 1 - 1e-4] so that both logarithms stay finite.

    image [N,D] and text [N,D] give [N]; text [N,M,D] gives [N,M]. In float32 under autocast too: bfloat16
    cannot tell 0.996 from 1. Source: CLIMS' release.
    """
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    cosine = (image * text if text.dim() == 2 else image[:, None] * text).sum(dim=-1)
    return cosine.clamp(1e-4, 1 - 1e-4)


def attract(similarities: torch.Tensor) -> torch.Tensor:
    """Mean of -log s over pairs, 0 without pairs. s [N] in (0,1).

    Source: CLIMS' OTM, first term of POLE eq. 5, of SemPLeS eq. 1 and (with prompts learned) of eq. 2.
    """
    return -similarities.log().sum() / max(similarities.numel(), 1)


def repel(similarities: torch.Tensor) -> torch.Tensor:
    """Mean of -log(1 - s) over pairs, 0 without pairs. s [N] in (0,1).

    Source: CLIMS' BTM, second term of POLE eq. 5 and of SemPLeS eqs. 1 and 2, SemPLeS eq. 3.
    """
    return -(1 - similarities).log().sum() / max(similarities.numel(), 1)


def suppress(similarities: torch.Tensor, threshold: float, reduction: str = "sum") -> torch.Tensor:
    """-log(1 - s) of foreground regions' similarities s [N,M] to M background prompts where s > threshold.

    reduction `sum` over pairs and prompts (CLIMS' CBS) or `mean` over pairs of the sum over prompts
    (SemPLeS eq. 3 has M = 1 and threshold 0).
    """
    total = -((1 - similarities).log() * (similarities > threshold)).sum()
    return total if reduction == "sum" else total / max(len(similarities), 1)


def area(probabilities: torch.Tensor) -> torch.Tensor:
    """Mean activation (CLIMS' REG): probabilities [..] in [0,1], 0 when empty."""
    return probabilities.sum() / max(probabilities.numel(), 1)


def weighted(terms: dict[str, torch.Tensor], weights: Weights) -> dict[str, torch.Tensor]:
    """The terms and first their sum `loss`, each times the weight of its name."""
    return {"loss": sum(getattr(weights, name) * value for name, value in terms.items()), **terms}
