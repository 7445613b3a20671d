"""Training labels of affinity networks: pixels of which the CAMs are sure, and the pairs that they decide."""
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .crf import BILATERAL, GAUSSIAN, dense_crf, unary_from_labels, unary_from_probabilities
from .random_walk import pair_offsets

UNSURE = 255


def confident_labels(image: np.ndarray, cams: np.ndarray, keys: np.ndarray, foreground: float,
                     background: float, kind: str = "irn", gaussian: Sequence[float] = GAUSSIAN,
                     bilateral: Sequence[float] = BILATERAL) -> np.ndarray:
    """Pixels that are surely a class or surely background: a label map uint8 [H, W], 255 where unsure.

    image: uint8 [H, W, 3]; cams: float32 [k, H, W] in [0, 1] of the 0-based classes keys [k]. A CRF labels
    the image twice. A pixel that is foreground beside a strong background is sure foreground; one that is
    background even beside a weak background is sure background.
    kind "irn" (release): `foreground` and `background` are the two scores of the background (0.30 and 0.05),
    and the CRF starts from labels. kind "psa" (CVPR 2018, equation 2): they are exponents a of the background
    (1 - max cam)^a (4 and 32), and the CRF starts from scores.
    gaussian, bilateral: kernels of the CRF, see `dense_crf`; PSA's release has (3, 3) and (80, 13, 10).
    """
    strongest = cams.max(0)
    unaries = []
    for value in (foreground, background):
        if kind == "psa":
            rival = (1 - strongest).clip(0) ** value
            scores = np.concatenate([rival[None], cams])
            unaries.append(unary_from_probabilities(scores))
        else:
            rival = np.full_like(strongest, value)
            scores = np.concatenate([rival[None], cams])
            unaries.append(unary_from_labels(scores.argmax(0), len(scores)))
    marginals = dense_crf(image, np.stack(unaries), 10, gaussian, bilateral)
    numbers = np.append(0, np.asarray(keys) + 1).astype(np.uint8)
    beside_strong, beside_weak = numbers[marginals.argmax(1)]
    labels = np.full(beside_strong.shape, UNSURE, np.uint8)
    labels[beside_weak == 0] = 0
    labels[beside_strong > 0] = beside_strong[beside_strong > 0]
    return labels


def shrink_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps [B, H, W] at a network's resolution: the pixel at each cell's centre, as in IRN's loader."""
    return torch.nn.functional.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0].long()


def pair_views(maps: Tensor, radius: int) -> tuple[Tensor, list[Tensor]]:
    """Values of maps [..., h, w] at both ends of the pairs within `radius` that training looks at.

    Returns the values of the first pixels, [..., y, x], and for each of `pair_offsets` a view of the same
    shape with the values of the second pixels. The first pixels are those with all partners inside the map,
    as in IRN and PSA. ValueError for maps that are too small to hold one.
    """
    reach = radius - 1
    height = maps.shape[-2] - reach
    width = maps.shape[-1] - 2 * reach
    if height < 1 or width < 1:
        raise ValueError(f"maps of {maps.shape[-2]} x {maps.shape[-1]} hold no pairs of radius {radius}; "
                         "take a larger crop or a smaller radius")
    first = maps[..., :height, reach:reach + width]
    others = [maps[..., dy:dy + height, reach + dx:reach + dx + width] for dy, dx in pair_offsets(radius)]
    return first, others


def pair_labels(labels: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which pairs are both background, both of one class, of two labels: bool [B, n, y, x] each.

    A pair with an unsure pixel is none of the three.
    """
    first, others = pair_views(labels, radius)
    first = first.unsqueeze(1)
    second = torch.stack(others, 1)
    sure = (first != UNSURE) & (second != UNSURE)
    same = first == second
    return sure & same & (first == 0), sure & same & (first > 0), sure & ~same


def pair_terms(affinity: Tensor, labels: Tensor, radius: int) -> dict[str, tuple]:
    """Cross entropies of affinities [B, n, y, x] over the three kinds of `pair_labels`.

    Returns {kind: (weight, total over the pairs, number of pairs)}. The weights 1/4, 1/4 and 1/2 and the 1e-5
    inside the logarithm and beside the number of pairs are those of both releases.
    """
    background, foreground, negative = pair_labels(labels, radius)
    same = -torch.log(affinity + 1e-5)
    different = -torch.log(1 + 1e-5 - affinity)
    terms = {}
    for name, weight, values, chosen in (("background", 0.25, same, background),
                                         ("foreground", 0.25, same, foreground),
                                         ("negative", 0.5, different, negative)):
        chosen = chosen.to(values.dtype)
        terms[name] = (weight, (values * chosen).sum(), chosen.sum() + 1e-5)
    return terms
