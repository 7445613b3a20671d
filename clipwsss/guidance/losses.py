"""Losses of CLIP guidance, each pair's own value: means, sums and weights are the caller's. Leaf module."""
import torch
import torch.nn.functional as F


def similarity(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Cosine of paired features, clamped to [1e-4, 1 - 1e-4] so that both logarithms stay finite.

    image [N,D] and text [N,D] give [N]; text [N,M,D] gives [N,M]. In float32 under autocast too: bfloat16
    cannot tell 0.996 from 1. Source: CLIMS' release.
    """
    image = F.normalize(image.float(), dim=-1)
    text = F.normalize(text.float(), dim=-1)
    if text.dim() == 3:
        image = image[:, None]
    return (image * text).sum(dim=-1).clamp(1e-4, 1 - 1e-4)


def attract(similarities: torch.Tensor) -> torch.Tensor:
    """-log s of similarities s [..] in (0,1): small where image and text are alike.

    Source: CLIMS' OTM, first term of POLE eq. 5, of SemPLeS eq. 1 and (with prompts learned) of eq. 2.
    """
    return -similarities.log()


def repel(similarities: torch.Tensor) -> torch.Tensor:
    """-log(1 - s) of similarities s [..] in (0,1): small where image and text differ.

    Source: CLIMS' BTM, second term of POLE eq. 5 and of SemPLeS eqs. 1 and 2, SemPLeS eq. 3.
    """
    return -(1 - similarities).log()


def suppress(similarities: torch.Tensor, threshold: float) -> torch.Tensor:
    """-log(1 - s) where s > threshold and 0 elsewhere, for the similarities s [N,M] or [N] of foreground
    regions and background prompts.

    Source: CLIMS' CBS, which sums it over pairs and prompts; SemPLeS eq. 3 is the mean over pairs of one
    prompt, with threshold 0.
    """
    return repel(similarities) * (similarities > threshold)
