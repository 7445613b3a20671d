"""Training labels of affinity networks: sure regions of CAMs, and the pairs of pixels that they decide."""
import numpy as np
import torch
from torch import Tensor

from .crf import BILATERAL, GAUSSIAN, dense_crf, unary_from_labels, unary_from_probabilities
from .random_walk import pair_offsets

UNSURE = 255
PSA_BILATERAL = (80, 13, 10)  # its release's kernel; the CRF's own are IRN's


def confident_labels(image: np.ndarray, cams: np.ndarray, keys: np.ndarray, foreground: float,
                     background: float, kind: str = "irn") -> np.ndarray:
    """Pixels that are surely a class or surely background, as a label map uint8 [H, W] with 255 for the rest.

    image uint8 [H, W, 3]; cams float32 [k, H, W] in [0, 1] of the 0-based classes keys [k]. A CRF labels the
    image twice: against a strong background, for sure foreground, and a weak one, for sure background.
    Kind "irn" (release): `foreground` and `background` are these scores (0.30, 0.05), the CRF starts from
    labels. "psa" (CVPR 2018, equation 2): they are exponents of (1 - max cam) (4, 32), it starts from scores.
    """
    numbers = np.append(0, np.asarray(keys) + 1).astype(np.uint8)
    strongest = cams.max(0)
    rivals = [(1 - strongest).clip(0) ** value if kind == "psa" else np.full_like(strongest, value)
              for value in (foreground, background)]
    scores = np.stack([np.concatenate([rival[None], cams]) for rival in rivals])
    if kind == "psa":
        unaries, bilateral = [unary_from_probabilities(item) for item in scores], PSA_BILATERAL
    else:
        unaries, bilateral = [unary_from_labels(item, len(numbers)) for item in scores.argmax(1)], BILATERAL
    refined = dense_crf(image, np.stack(unaries), 10, GAUSSIAN, bilateral)
    sure, doubtful = numbers[refined.argmax(1)]
    return np.where(sure > 0, sure, np.where(doubtful == 0, 0, UNSURE)).astype(np.uint8)


def shrink_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps [B, H, W] at a network's resolution: the pixel at each cell's centre, as in IRN's loader."""
    return torch.nn.functional.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0].long()


def pair_views(maps: Tensor, radius: int) -> tuple[Tensor, list[Tensor]]:
    """maps [..., h, w] -> values at both ends of the pairs within `radius` that training looks at.

    The first pixels' [..., y, x], those with all partners inside (IRN, PSA), and one such view of the second
    pixels' for each of `pair_offsets`. ValueError for maps that are too small to hold one.
    """
    reach = radius - 1
    height, width = maps.shape[-2] - reach, maps.shape[-1] - 2 * reach
    if height < 1 or width < 1:
        raise ValueError(f"maps of {maps.shape[-2]} x {maps.shape[-1]} hold no pairs of radius {radius}; "
                         "take a larger crop or a smaller radius")
    first, *others = (maps[..., dy:dy + height, reach + dx:reach + dx + width]
                      for dy, dx in ((0, 0), *pair_offsets(radius)))
    return first, others


def pair_labels(labels: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of one class, background or foreground, and of two classes: bool [B, n, y, x] each.

    Pairs with an unsure pixel are in none of them.
    """
    first, others = pair_views(labels, radius)
    first, second = first.unsqueeze(1), torch.stack(others, 1)
    sure = (first != UNSURE) & (second != UNSURE)
    same = first == second
    return sure & same & (first == 0), sure & same & (first > 0), sure & ~same


def pair_terms(affinity: Tensor, labels: Tensor, radius: int) -> dict[str, tuple]:
    """Cross entropies of affinities [B, n, y, x] over the three kinds of `pair_labels`.

    {kind: (weight, total over pairs, number of pairs)} with the weights 1/4, 1/4, 1/2 of both releases, which
    also add 1e-5 inside the logarithm and to the number of pairs.
    """
    background, foreground, negative = pair_labels(labels, radius)
    alike = -torch.log(affinity + 1e-5)
    apart = -torch.log(1 + 1e-5 - affinity)
    terms = {}
    for name, weight, values, chosen in (("background", 0.25, alike, background),
                                         ("foreground", 0.25, alike, foreground),
                                         ("negative", 0.5, apart, negative)):
        chosen = chosen.to(values.dtype)
        terms[name] = (weight, (values * chosen).sum(), chosen.sum() + 1e-5)
    return terms
