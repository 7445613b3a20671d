"""Random walk of class activation maps over pixel affinities, without the N x N matrix.

The published walks (IRN: Ahn, Cho & Kwak, CVPR 2019; PSA: Ahn & Kwak, CVPR 2018) square a dense transition
matrix of all pixel pairs. But only pairs closer than a small radius have an affinity, and it is symmetric.
With A the affinities to the power beta (1 on the diagonal) and D the diagonal matrix of A's row sums, a step
is P = D^-1 A. P is similar to D^-1/2 A D^-1/2, which is symmetric and has its eigenvalues t in [-1, 1] for
every non-negative A. On this interval t^steps is a short Chebyshev series, whose coefficients are binomial
probabilities: 256 steps take 70 products with P. On the CPU, A is a scipy matrix of diagonals; on other
devices the product is computed from shifted slices.
"""
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse, special

SERIES_TOLERANCE = 1e-5  # of the Chebyshev series, what is cut off sums to less
Offsets = Sequence[tuple[int, int]]
Array = np.ndarray | torch.Tensor


@lru_cache(maxsize=16)
def pair_offsets(radius: int) -> tuple[tuple[int, int], ...]:
    """Offsets (dy, dx) to the partners of a pixel that are closer than `radius`, each pair once.

    Affinity maps are in this order: ((0, 1), (1, -1), (1, 0), (1, 1)) for a radius of 2. ValueError for a
    radius that is not an integer of at least 2.
    """
    if not isinstance(radius, int) or radius < 2:
        raise ValueError(f"radius: need an integer of at least 2, got {radius!r}")
    columns = range(1 - radius, radius)
    return tuple((dy, dx) for dy in range(radius) for dx in columns
                 if (dy, dx) > (0, 0) and dy * dy + dx * dx < radius * radius)


@lru_cache(maxsize=1024)
def straight_path(dy: int, dx: int) -> tuple[tuple[int, int], ...]:
    """Pixels (y, x) of IRN's path from (0, 0) to (dy >= 0, dx), ends included: all within 1 of the line."""
    columns = range(min(0, dx), max(0, dx) + 1)
    return tuple((y, x) for y in range(dy + 1) for x in columns if (dy * x - dx * y) ** 2 < dy * dy + dx * dx)


def pair_slices(size: tuple[int, int], dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the pixels in a map that have a partner at (dy >= 0, dx) in it, and of these partners.

    In maps of 5 x 8 pixels with the offset (1, -2): rows 0..3 and columns 2..7; rows 1..4 and columns 0..5.
    """
    height, width = size
    first = (slice(0, max(height - dy, 0)), slice(max(-dx, 0), max(width - dx, 0)))
    second = (slice(dy, None), slice(max(dx, 0), max(width + dx, 0)))
    return first, second


def boundary_affinity(boundary: Array, radius: int = 5) -> torch.Tensor:
    """IRN's semantic affinity of each pair: 1 - the largest boundary value on the straight path between them.

    boundary: [..., h, w] in [0, 1]. Returns float32 [..., n, h, w] for the n `pair_offsets(radius)`. Entry
    (y, x) is the affinity of the pair (y, x), (y + dy, x + dx), and 0 where the partner lies outside.
    """
    boundary = _as_tensor(boundary, "boundary")
    if bool(((boundary < 0) | (boundary > 1)).any()):
        raise ValueError(f"boundary: values must lie in [0, 1], got {boundary.min():g} to {boundary.max():g}")
    *leading, height, width = boundary.shape
    offsets = pair_offsets(radius)
    reach = radius - 1
    padded = F.pad(boundary, (reach, reach, 0, reach), value=1.0)
    affinities = boundary.new_empty(*leading, len(offsets), height, width)
    for index, offset in enumerate(offsets):
        largest = affinities[..., index, :, :].copy_(boundary)
        for y, x in straight_path(*offset):
            torch.maximum(largest, padded[..., y:y + height, reach + x:reach + x + width], out=largest)
    return affinities.neg_().add_(1)


def color_affinity(image: Array, radius: int = 5, sigma: float = 0.07,
                   size: tuple[int, int] | None = None) -> torch.Tensor:
    """Affinity of each pair from its colour difference over the local contrast, for which nothing is trained.

    It is exp(-mean over the channels of |I_i - I_j| / (sigma * s_ij)), where s_ij is the mean of the standard
    deviations in the neighbourhoods of i and j: the kernel of PAMR (Araslanov & Roth, CVPR 2020) made
    symmetric. image: [3, H, W], uint8 or float of any scale; it is averaged down to `size` (h, w) if given.
    Returns float32 [n, h, w] as `boundary_affinity` does, for a walk with beta = 1. ValueError names an
    argument of a wrong shape or range, or with NaN.
    """
    pixels = _as_tensor(image, "image")
    if pixels.ndim != 3 or len(pixels) != 3:
        raise ValueError(f"image: need [3, H, W], got {list(pixels.shape)}")
    if not sigma > 0:
        raise ValueError(f"sigma: need a positive number, got {sigma!r}")
    if size is not None and tuple(size) != tuple(pixels.shape[1:]):
        pixels = F.interpolate(pixels[None], size, mode="area")[0]
    offsets = pair_offsets(radius)
    size = pixels.shape[1:]
    padded = F.pad(pixels[None], (radius - 1,) * 4, mode="replicate")
    mean, square = F.avg_pool2d(torch.stack((padded[0], padded[0].square())), 2 * radius - 1, stride=1)
    spread = (square - mean.square()).clamp_(min=0).sqrt_()
    spread += 1e-3 * (pixels.max() - pixels.min()) + 1e-12       # a flat image has no contrast to divide by
    affinities = pixels.new_zeros(len(offsets), *size)
    for index, (dy, dx) in enumerate(offsets):
        first, second = pair_slices(size, dy, dx)
        difference = (pixels[:, *first] - pixels[:, *second]).abs_()
        difference /= spread[:, *first] + spread[:, *second]
        affinities[index, *first] = torch.exp(difference.mean(0) * (-2 / sigma))
    return affinities


def propagate(cams: Array, boundary: Array, radius: int = 5, beta: float = 10, exp_times: int = 8) -> Array:
    """IRN's random walk with semantic affinities: maps spread inside the regions that `boundary` encloses.

    cams: [K, h, w], or [B, K, h, w] for images of one size; boundary: [h, w] or [B, h, w] in [0, 1]. The maps
    times 1 - boundary walk 2^exp_times steps. For maps in [0, 1] the result equals the published walk's to
    1e-4. It is float32 and has the shape, kind (numpy or torch) and device of `cams`. ValueError names an
    argument of a wrong shape or range, or with NaN.
    """
    maps = _as_tensor(cams, "cams")
    edges = _as_tensor(boundary, "boundary")
    expected = maps.shape[:-3] + maps.shape[-2:]
    if maps.ndim not in (3, 4) or edges.shape != expected:
        raise ValueError(f"boundary: cams {list(maps.shape)} need a boundary of {list(expected)}, "
                         f"got {list(edges.shape)}; cams are [K, h, w] or [B, K, h, w]")
    edges = edges.to(maps.device)
    seeds = maps * (1 - edges.unsqueeze(-3))
    affinities = boundary_affinity(edges, radius)
    walked = propagate_affinity(seeds, affinities, pair_offsets(radius), exp_times, beta)
    return walked if isinstance(cams, torch.Tensor) else walked.numpy()


def propagate_affinity(cams: Array, affinities: Array, offsets: Offsets, exp_times: int = 8,
                       beta: float = 8) -> Array:
    """Random walk of 2^exp_times steps over any symmetric affinities of pairs to the power `beta`.

    cams: [K, h, w] or [B, K, h, w]. affinities: [n, h, w] or [B, n, h, w], at least 0; entry (y, x) of map i
    is that of the pair (y, x), (y + dy, x + dx) with (dy, dx) = offsets[i], and is ignored where the partner
    lies outside. A pixel has affinity 1 to itself. The defaults are PSA's. Returns what `propagate` returns.
    ValueError names an argument of a wrong shape or range, or with NaN, and offsets that hold a pair twice.
    """
    maps = _as_tensor(cams, "cams")
    weights = _as_tensor(affinities, "affinities")
    expected = (*maps.shape[:-3], len(offsets), *maps.shape[-2:])
    if maps.ndim not in (3, 4) or weights.shape != expected:
        raise ValueError(f"affinities: cams {list(maps.shape)} and {len(offsets)} offsets need affinities of "
                         f"{list(expected)}, got {list(weights.shape)}")
    if any((dy, dx) <= (0, 0) or dy < 0 for dy, dx in offsets) or len(set(offsets)) < len(offsets):
        raise ValueError("offsets: need each pair once, as (dy, dx) with dy > 0, or with dy = 0 and dx > 0")
    if bool((weights < 0).any()) or not beta > 0:
        raise ValueError(f"affinities: need values >= 0 and beta > 0, got {weights.min():g} and {beta:g}")
    coefficients = _power_series(exp_times)
    batched = maps if maps.ndim == 4 else maps[None]
    weights = weights.to(maps.device).reshape(len(batched), len(offsets), *maps.shape[-2:])
    pairs, own, scale = _transition(weights, offsets, beta)
    walk = _walk_diagonals if maps.device.type == "cpu" else _walk_slices
    walked = walk(batched, pairs, own, scale, offsets, coefficients).reshape(maps.shape)
    return walked if isinstance(cams, torch.Tensor) else walked.numpy()


def _as_tensor(values: Array, name: str) -> torch.Tensor:
    """`values` as a detached float32 tensor on its own device; ValueError when it is empty or not finite."""
    if not isinstance(values, (np.ndarray, torch.Tensor)):
        raise ValueError(f"{name}: need a numpy array or a torch tensor, got {type(values).__name__}")
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    tensor = tensor.detach().float()
    if tensor.numel() == 0:
        raise ValueError(f"{name}: is empty, its shape is {list(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: holds NaN or infinite values")
    return tensor


@lru_cache(maxsize=16)
def _power_series(exp_times: int) -> tuple[float, ...]:
    """Chebyshev coefficients of t^(2^exp_times), cut where the rest sums to less than the tolerance.

    t^2 = 1/2 T_0 + 1/2 T_2: the coefficients 0.5, 0, 0.5. In general that of T_k is twice the probability of
    k more heads than tails in as many throws as there are steps (for T_0, once).
    """
    if exp_times not in range(21):
        raise ValueError(f"exp_times: need an integer from 0 to 20, got {exp_times!r}")
    steps = 2 ** int(exp_times)
    orders = np.arange(steps % 2, steps + 1, 2)
    ups = (steps - orders) // 2
    choices = special.gammaln(steps + 1) - special.gammaln(ups + 1) - special.gammaln(steps - ups + 1)
    coefficients = np.zeros(steps + 1)
    coefficients[orders] = np.exp(choices - steps * math.log(2)) * np.where(orders, 2, 1)
    rest = coefficients[::-1].cumsum()[::-1]
    return tuple(coefficients[rest >= SERIES_TOLERANCE].tolist())


def _transition(weights: torch.Tensor, offsets: Offsets, beta: float) -> tuple[torch.Tensor, ...]:
    """The parts of twice the transition matrix: 2 P = scale * (own + pairs).

    pairs: [B, n, h, w], affinities to the power beta, 0 where the partner lies outside. own: [B, 1, h, w],
    the diagonal of A, 1 up to rounding. scale: [B, 1, h, w], 2 over the sums of A's rows.
    """
    pairs = torch.zeros_like(weights)
    sums = torch.zeros_like(weights[:, :1], dtype=torch.float64)
    for index, (dy, dx) in enumerate(offsets):
        first, second = pair_slices(weights.shape[-2:], dy, dx)
        inside = weights[:, index:index + 1, *first].pow(beta)
        pairs[:, index:index + 1, *first] = inside
        sums[..., *first] += inside
        sums[..., *second] += inside
    # The steps multiply an error in the sum of a row. So the sums are in float64, and `own` makes up for the
    # rounding of `scale`: scale * (own + sums) = 2.
    scale = (2 / (1 + sums)).float()
    own = (2 / scale.double() - sums).float()
    return pairs, own, scale


def _series(product: Callable[[Array], Array], start: Array, coefficients: Sequence[float]) -> Array:
    """The sum over k of coefficients[k] T_k(P) start, where product(v) = 2 P v; for numpy and torch.

    Chebyshev polynomials follow from the two before: T_0 = 1, T_1 = t, T_k = 2 t T_(k-1) - T_(k-2). Here
    `previous` is T_(k-2)(P) start and `current` is T_(k-1)(P) start.
    """
    previous = start
    current = product(start) * 0.5
    total = coefficients[0] * start
    total += coefficients[1] * current
    for coefficient in coefficients[2:]:
        following = product(current) - previous
        previous = current
        current = following
        if coefficient:  # every other one is 0
            total += coefficient * current
    return total


def _walk_diagonals(maps: torch.Tensor, pairs: torch.Tensor, own: torch.Tensor, scale: torch.Tensor,
                    offsets: Offsets, coefficients: Sequence[float]) -> torch.Tensor:
    """The walk on the CPU: A is a matrix of diagonals; maps walk one by one, as scipy is slower on several.

    In flattened maps that are 8 wide, the pairs of offset (1, -2) lie on the diagonals 6 above and 6 below
    the main one. scipy stores the element in row r of the diagonal s above as data[row of s, r + s].
    """
    batch, classes, height, width = maps.shape
    pixels = height * width
    shifts = {}  # number of an offset -> its diagonal, for offsets that have a pair in the map
    for number, (dy, dx) in enumerate(offsets):
        if dy < height and abs(dx) < width:
            shifts[number] = dy * width + dx
    diagonals = sorted({0, *shifts.values(), *(-shift for shift in shifts.values())})
    row_of = {diagonal: row for row, diagonal in enumerate(diagonals)}
    seeds, pairs, own, scale = (part.flatten(2).numpy() for part in (maps, pairs, own, scale))
    walked = np.empty_like(seeds)
    for image in range(batch):
        data = np.zeros((len(diagonals), pixels), np.float32)
        data[row_of[0]] = own[image, 0]
        for number, shift in shifts.items():                # in narrow images several pairs share a diagonal
            data[row_of[shift], shift:] += pairs[image, number, :pixels - shift]
            data[row_of[-shift]] += pairs[image, number]
        matrix = sparse.dia_array((data, diagonals), shape=(pixels, pixels))

        def product(vector: np.ndarray) -> np.ndarray:
            return matrix.dot(vector) * scale[image, 0]

        for label in range(classes):
            walked[image, label] = _series(product, seeds[image, label], coefficients)
    return torch.from_numpy(walked)


def _walk_slices(maps: torch.Tensor, pairs: torch.Tensor, own: torch.Tensor, scale: torch.Tensor,
                 offsets: Offsets, coefficients: Sequence[float]) -> torch.Tensor:
    """The walk on any device, of all classes and images at once: the product with A from shifted slices."""
    ends = [pair_slices(maps.shape[-2:], dy, dx) for dy, dx in offsets]

    def product(vectors: torch.Tensor) -> torch.Tensor:
        result = own * vectors
        for index, (first, second) in enumerate(ends):
            weight = pairs[:, index:index + 1, *first]
            result[..., *first].addcmul_(weight, vectors[..., *second])
            result[..., *second].addcmul_(weight, vectors[..., *first])
        return result.mul_(scale)

    return _series(product, maps, coefficients)
