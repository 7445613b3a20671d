"""Losses of CLIP guidance (each pair's own values), the objectives of the stages, POLE's adapters. Leaf module.

An objective gives `{name: (weight, total, count)}`: the loss is the sum over the terms of weight * total /
count, and a term whose count is None is a plain sum. `training.fit` does this, and joins several processes.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROMPT_EPSILON = 1e-4  # of minmax maps while prompts are learned (SemPLeS' release)
ADAPTERS = ("none", "fixed", "learnable")


def similarity(image: Tensor, text: Tensor) -> Tensor:
    """Cosine of paired features, clamped to [1e-4, 1 - 1e-4] so that both logarithms stay finite.

    image [N,D] and text [N,D] give [N]; text [N,M,D] gives [N,M]. In float32 under autocast too: bfloat16
    cannot tell 0.996 from 1. Source: CLIMS' release.
    """
    image = F.normalize(image.float(), dim=-1)
    text = F.normalize(text.float(), dim=-1)
    if text.dim() == 3:
        image = image[:, None]
    return (image * text).sum(dim=-1).clamp(1e-4, 1 - 1e-4)


def attract(similarities: Tensor) -> Tensor:
    """-log s of similarities s [..] in (0,1): small where image and text are alike.

    Source: CLIMS' OTM, first term of POLE eq. 5, of SemPLeS eq. 1 and (with prompts learned) of eq. 2.
    """
    return -similarities.log()


def repel(similarities: Tensor) -> Tensor:
    """-log(1 - s) of similarities s [..] in (0,1): small where image and text differ.

    Source: CLIMS' BTM, second term of POLE eq. 5 and of SemPLeS eqs. 1 and 2, SemPLeS eq. 3.
    """
    return -(1 - similarities).log()


def suppress(similarities: Tensor, threshold: float) -> Tensor:
    """-log(1 - s) where s > threshold and 0 elsewhere, for the similarities s [N,M] or [N] of foreground
    regions and background prompts.

    Source: CLIMS' CBS, which sums it over pairs and prompts; SemPLeS eq. 3 is the mean over pairs of one
    prompt, with threshold 0.
    """
    return repel(similarities) * (similarities > threshold)


class Adapter(nn.Module):
    """Residual bottleneck on features [N,D]: r * ReLU(x W1) W2 + (1 - r) * x (POLE eqs. 7-8, CLIP-Adapter).

    W1 has D/4 columns; r starts at 0.2. kind `fixed` keeps r that scalar, `learnable` learns one r per
    dimension (the vector of POLE sec. 3.4), `none` returns x.
    """

    def __init__(self, dim: int, kind: str):
        super().__init__()
        self.kind = kind
        if kind != "none":
            self.down = nn.Linear(dim, dim // 4, bias=False)
            self.up = nn.Linear(dim // 4, dim, bias=False)
        self.ratio = nn.Parameter(torch.full((dim,), 0.2)) if kind == "learnable" else 0.2

    def forward(self, features: Tensor) -> Tensor:
        """Adapted features, not normalised."""
        if self.kind == "none":
            return features
        return self.ratio * self.up(F.relu(self.down(features))) + (1 - self.ratio) * features


def guided_loss(regions, text: Tensor, background_text: Tensor, adapters: nn.ModuleList,
                weights: dict[str, float], threshold: float, reduction: str,
                area_over: str) -> dict[str, tuple]:
    """What trains the generator: CLIMS' OTM, BTM, CBS and REG (POLE eq. 5, SemPLeS eqs. 1 and 3).

    regions: the `Regions` of a batch (see regions.py), N pairs of an image and one of its classes. text
    [N,D]: each pair's class prompt; background_text [N,M,D]: its M background prompts. adapters: that of
    images and that of texts (POLE eqs. 7-8). weights: of the terms fg, bg, suppress and area. threshold: the
    similarity above which suppression acts; reduction: its `sum` or `mean` over the pairs. area_over: whether
    the area term is over the maps of `all` classes or of the `present` ones.
    """
    image_adapter, text_adapter = adapters
    text = text_adapter(text)
    fg = attract(similarity(image_adapter(regions.foreground), text))
    bg = repel(similarity(image_adapter(regions.background), text))
    suppressed = suppress(similarity(regions.foreground, background_text), threshold)
    covered = regions.present if area_over == "present" else regions.probabilities
    suppressed_pairs = None if reduction == "sum" else len(suppressed)
    return {"fg": (weights["fg"], fg.sum(), len(fg)),
            "bg": (weights["bg"], bg.sum(), len(bg)),
            "suppress": (weights["suppress"], suppressed.sum(), suppressed_pairs),
            "area": (weights["area"], covered.sum(), covered.numel())}


def class_prompt_loss(regions, text: Tensor, weights: dict[str, float]) -> dict[str, tuple]:
    """What trains class prompts, text [K,D], with the generator fixed: POLE eq. 5 as a loss of prompts."""
    text = text[regions.classes]
    fg = attract(similarity(regions.foreground, text))
    bg = repel(similarity(regions.background, text))
    return {"fg": (weights["fg"], fg.sum(), len(fg)),
            "bg": (weights["bg"], bg.sum(), len(bg))}


def background_prompt_loss(regions, text: Tensor, class_text: Tensor, w_image: float, w_class: float,
                           repulsion: str) -> dict[str, tuple]:
    """What trains background prompts, text [K,D], with the generator fixed: SemPLeS eq. 2.

    They are attracted to (1 - P)X and repelled from the text of their class, class_text [K,D]. The repulsion
    is -log(1 - s) as in the `paper`, or +log s as in its `release`.
    """
    text = text[regions.classes]
    to_class = similarity(class_text[regions.classes], text)
    repelled = repel(to_class) if repulsion == "paper" else -attract(to_class)
    image = attract(similarity(regions.background, text))
    return {"image": (w_image, image.sum(), len(image)),
            "text": (w_class, repelled.sum(), len(repelled))}
