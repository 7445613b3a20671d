"""Fully connected CRF by mean field over a permutohedral lattice, in numpy and scipy.

Krähenbühl & Koltun, NIPS 2011, with Potts compatibility; lattice of Adams, Baek & Davis, Eurographics 2010.
Conventions and results are those of pydensecrf's DenseCRF2D. What makes it fast: the lattice is built by
whole arrays; both kernels share one sparse matrix that splats pixels onto vertices, and its transpose that
slices them back; labels of equal energies are filtered once and the last label not at all, since those of a
pixel sum to one; unaries of one image share its lattice.
"""
import math
from functools import lru_cache

import numpy as np
from scipy import sparse

GAUSSIAN = (3.0, 3.0)           # IRN's values (crf_inference_label): standard deviation in pixels, weight
BILATERAL = (50.0, 5.0, 10.0)   # standard deviations in pixels and in grey levels, weight
BLOCK = 16384                   # pixels handled at once: the temporaries of a block stay in the cache


def unary_from_labels(labels: np.ndarray, n_labels: int, confidence: float = 0.7) -> np.ndarray:
    """Energies float32 [C, H, W] of integer labels [H, W]: `confidence` for it, the rest for the others.

    Pixels of value 255 get equal energies; pydensecrf's zero_unsure=True is labels - 1 with 255 for 0 here.
    ValueError on labels outside 0..C-1 and on a confidence outside (0, 1).
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels: need integers [H, W], got {labels.dtype} {list(labels.shape)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: must lie between 0 and 1, got {confidence!r}")
    known = labels != 255
    outside = labels[known & ((labels < 0) | (labels >= n_labels))]
    if outside.size:
        raise ValueError(f"labels: must be 0 to {n_labels - 1}, or 255 to ignore, found {outside[0]}")
    other = (1 - confidence) / max(n_labels - 1, 1)
    unary = np.full((n_labels, *labels.shape), -math.log(other), np.float32)
    unary[labels[known], *np.nonzero(known)] = -math.log(confidence)
    unary[:, ~known] = math.log(n_labels)
    return unary


def unary_from_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Energies float32 [C, H, W]: -log of probabilities in [0, 1] (else ValueError), at least 1e-5."""
    probabilities = np.asarray(probabilities)
    low, high = probabilities.min(), probabilities.max()
    if probabilities.ndim != 3 or not (low >= 0 and high <= 1 + 1e-3):
        raise ValueError(f"probabilities: need [C, H, W] in [0, 1], got {list(probabilities.shape)} "
                         f"from {low:g} to {high:g}")
    return -np.log(np.clip(probabilities, 1e-5, 1)).astype(np.float32)


def dense_crf(image: np.ndarray, unary: np.ndarray, iterations: int = 10,
              gaussian: tuple[float, float] | None = GAUSSIAN,
              bilateral: tuple[float, float, float] | None = BILATERAL) -> np.ndarray:
    """Mean-field marginals float32 [C, H, W] of a fully connected CRF with Potts compatibility.

    image uint8 [H, W, 3]; unary: energies [C, H, W], or [U, C, H, W] for several filtered together; gaussian
    (sxy, weight) smooths over positions, bilateral (sxy, srgb, weight) over colours too, None leaves either
    out. ValueError names what does not fit.
    """
    lattice, unary = Lattice(image, gaussian, bilateral), np.asarray(unary)
    size = image.shape[:2]
    if unary.ndim not in (3, 4) or unary.shape[-2:] != size or unary.shape[-3] < 1:
        raise ValueError(f"unary: need [C, {size[0]}, {size[1]}] for this image, got {list(unary.shape)}")
    if unary.dtype.kind != "f" or not np.isfinite(unary).all():
        raise ValueError(f"unary: need finite floating point energies, got {unary.dtype}, perhaps with NaN")
    if not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations: need an integer of at least 0, got {iterations!r}")
    energies = unary.astype(np.float32, copy=False).reshape(-1, unary.shape[-3], size[0] * size[1])
    return _mean_field(lattice, energies, iterations).reshape(unary.shape)


class Lattice:
    """The kernels of one image; arguments as in `dense_crf`."""

    def __init__(self, image: np.ndarray, gaussian: tuple[float, float] | None,
                 bilateral: tuple[float, float, float] | None) -> None:
        kind, shape = getattr(image, "dtype", type(image).__name__), list(np.shape(image))
        if kind != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise ValueError(f"image: need a uint8 array [H, W, 3], got {kind} {shape}")
        size, numbers = shape[:2], [*(gaussian or ()), *(bilateral or ())]
        if not numbers or not all(number > 0 for number in numbers):
            raise ValueError(f"gaussian, bilateral: positive numbers, not {gaussian} and {bilateral}")
        parts = []
        if gaussian is not None:
            parts.append((_spatial_kernel(*size, gaussian[0]), gaussian[1]))
        if bilateral is not None:
            colors = image.reshape(-1, 3).T / np.float32(bilateral[1])
            features = np.concatenate((_positions(*size, bilateral[0]), colors))
            parts.append((_kernel(features), bilateral[2]))
        ends = np.cumsum([slicing.shape[1] for (slicing, _), _ in parts])
        self.blurs = [(slice(end - slicing.shape[1], end), neighbours)
                      for end, ((slicing, neighbours), _) in zip(ends, parts)]
        slicings = [slicing * np.float32(math.sqrt(weight)) for (slicing, _), weight in parts]
        self.slice = sparse.hstack(slicings, "csr")
        self.splat = self.slice.T
        self.total = self.filter(np.ones((self.slice.shape[0], 1), np.float32))[:, 0]

    def filter(self, values: np.ndarray) -> np.ndarray:
        """Weighted sum over the kernels of the normalised Gaussian averages of values float32 [N, c]."""
        splatted = self.splat @ values
        for left in range(0, values.shape[1], 8):           # numpy gathers rows of up to 32 bytes faster
            columns = slice(left, left + 8)
            part = np.ascontiguousarray(splatted[:, columns])
            for rows, neighbours in self.blurs:
                _blur(part[rows], neighbours)
            splatted[:, columns] = part
        return self.slice @ splatted


def _mean_field(lattice: Lattice, energies: np.ndarray, iterations: int) -> np.ndarray:
    """Marginals of energies, both [U, C, N]; labels of equal energies stay equal and are carried once."""
    unaries = [_distinct(energy) for energy in energies]
    ends = np.cumsum([len(logits) - 1 for logits, _, _ in unaries])
    width = ends[-1] if ends[-1] < 3 else -(-ends[-1] // 4) * 4     # scipy is slower on 3 columns than on 4
    free = np.zeros((energies.shape[2], width), np.float32)
    marginals = np.empty_like(energies)
    for iteration in range(iterations + 1):
        messages = lattice.filter(free) if iteration else None
        for start in range(0, len(free), BLOCK):
            part = slice(start, start + BLOCK)
            for (logits, counts, group), end, result in zip(unaries, ends, marginals):
                columns = slice(end - len(logits) + 1, end)
                scores = logits[:, part].copy()
                if messages is not None:
                    received = messages[part, columns].T
                    scores[:-1] += received
                    scores[-1] += (lattice.total[part] - counts[:-1] @ received) / counts[-1]
                scores -= scores.max(0)
                np.exp(scores, out=scores)
                scores /= counts @ scores
                free[part, columns] = scores[:-1].T
                if iteration == iterations:
                    result[:, part] = scores[group]
    return marginals


def _distinct(energy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Negated distinct rows [G, N] of energies [C, N], how many labels have each, the row of each label."""
    first, group = [], []
    for label, row in enumerate(energy):
        equal = [index for index, other in enumerate(first) if np.array_equal(row, energy[other])]
        first += [] if equal else [label]
        group += equal or [len(first) - 1]
    return -energy[first], np.bincount(group).astype(np.float32), np.array(group)


def _positions(height: int, width: int, deviation: float) -> np.ndarray:
    return np.indices((height, width), np.float32)[::-1].reshape(2, -1) / np.float32(deviation)     # x, y


@lru_cache(maxsize=8)
def _spatial_kernel(height: int, width: int, deviation: float) -> tuple[sparse.csr_array, np.ndarray]:
    return _kernel(_positions(height, width, deviation))


def _kernel(features: np.ndarray) -> tuple[sparse.csr_array, np.ndarray]:
    """Lattice of features float32 [d, N] >= 0, given in standard deviations; symmetric normalisation.

    Returns what interpolates pixels from the M vertices, normalised, [N, M + 1], and the vertices' neighbours
    along each axis, intp [d + 1, 2, M], M where there is none.
    """
    dim, pixels = features.shape
    corners = dim + 1
    scales = math.sqrt(2 / 3) * corners / np.sqrt(np.arange(1, corners) * np.arange(2, corners + 1))
    reach = scales * features.max(1)            # coordinate i is -i * reach[i - 1] to the sum of reach[i:]
    ranges = np.ceil(np.arange(dim) * np.append(0, reach[:-1]) + reach[::-1].cumsum()[::-1]) + 8 * corners
    if not ranges.prod() < 2 ** 62:
        raise ValueError("gaussian, bilateral: the standard deviations are too small for this image")
    radix = np.append(ranges[:0:-1].astype(np.int64).cumprod()[::-1], 1)    # packs coordinates into one sum
    numbering = _Numbering(corners * pixels)
    vertices, weights = (np.empty((pixels, corners), kind) for kind in (np.int32, np.float32))
    for start in range(0, pixels, BLOCK):
        part = slice(start, start + BLOCK)
        keys, weights[part] = _simplices(features[:, part], scales.astype(np.float32), radix)
        vertices[part] = numbering.number(keys.reshape(-1)).reshape(keys.shape).T
    count = numbering.count
    neighbours = np.full((corners, 2, count), count, np.intp)
    for (before, after), step in zip(neighbours, radix.sum() - corners * np.append(radix, 0)):
        found = numbering.number(numbering.values[:count] - step, add=False)
        own = np.flatnonzero(found >= 0)
        before[own] = found[own]
        after[found[own]] = own
    rows = np.arange(0, vertices.size + 1, corners, dtype=np.int32)
    slicing = sparse.csr_array((weights.ravel(), vertices.ravel(), rows), shape=(pixels, count + 1))
    sums = slicing @ _blur(slicing.T @ np.ones((pixels, 1), np.float32), neighbours)
    alpha = 1 / (1 + 2.0 ** -dim)                           # the lattice's scale, as in pydensecrf
    slicing.data *= np.repeat(np.sqrt(alpha / (alpha * sums + 1e-20)), corners)
    return slicing, neighbours


def _blur(values: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Convolves vertex values [M + 1, c] with 1/2, 1, 1/2 along each axis, in place; the last row is zero."""
    one, two = np.empty_like(values[:-1]), np.empty_like(values[:-1])
    for before, after in neighbours:
        values.take(before, axis=0, out=one, mode="clip")
        values.take(after, axis=0, out=two, mode="clip")
        one += two
        one *= np.float32(0.5)
        values[:-1] += one
    return values


def _simplices(features: np.ndarray, scales: np.ndarray, radix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Enclosing simplex of feature vectors float32 [d, n] (Adams et al., section 3; pydensecrf's arithmetic).

    Returns the keys of its vertices, int64 [d + 1, n], and their barycentric weights, float32 [n, d + 1].
    """
    dim, count = features.shape
    corners = dim + 1
    elevated, total = np.empty((corners, count), np.float32), np.zeros(count, np.float32)
    for axis in range(dim, 0, -1):
        scaled = features[axis - 1] * scales[axis - 1]
        elevated[axis] = total - np.float32(axis) * scaled
        total += scaled
    elevated[0] = total
    nearest = np.rint(elevated * np.float32(1 / corners))
    excess = nearest.sum(0)
    nearest *= corners
    offset = elevated - nearest
    rank = np.zeros((corners, count), np.float32)           # of each coordinate by descending offset
    for axis in range(dim):
        smaller = (offset[axis] < offset[axis + 1:]).view(np.int8)
        rank[axis] += smaller.sum(0, dtype=np.int8)
        rank[axis + 1:] += 1 - smaller
    rank += excess                                          # brings points off the plane back to it
    wrap = np.float32(corners) * ((rank < 0).view(np.int8) - (rank >= corners).view(np.int8))
    rank += wrap
    nearest += wrap
    place = rank.astype(np.intp) * count + np.arange(count)
    ordered, jumps = np.empty((corners, count), np.float32), np.empty((corners, count), np.int64)
    ordered.reshape(-1)[place] = (elevated - nearest) * np.float32(1 / corners)
    jumps.reshape(-1)[place] = corners * np.append(radix, 0)[:, None]
    weights = np.empty((count, corners), np.float32)
    weights[:, 0] = 1 + ordered[dim] - ordered[0]
    weights[:, 1:] = (ordered[dim - 1::-1] - ordered[:0:-1]).T
    keys = np.empty((corners, count), np.int64)
    keys[0] = (radix[:, None] * nearest[:dim].astype(np.int64)).sum(0)
    for remainder in range(1, corners):
        keys[remainder] = keys[remainder - 1] + radix.sum() - jumps[corners - remainder]
    return keys, weights


class _Numbering:
    """Numbers int64 values as they appear: a hash table filled and asked by whole arrays."""

    def __init__(self, capacity: int) -> None:
        self.values = np.full(capacity + 1, np.iinfo(np.int64).min)
        self.count = 0
        self.bits = capacity.bit_length() - 1
        self.tables: list[np.ndarray] = []

    def number(self, values: np.ndarray, add: bool = True, level: int = 0) -> np.ndarray:
        """Numbers int32 of the values; new ones are added, or get -1. Clashes go to the next table."""
        bits = max(10, self.bits - 2 * level)
        if level == len(self.tables):
            self.tables.append(np.full(1 << bits, -1, np.int32))
        multiplier = np.uint64(0x9E3779B97F4A7C15 * (2 * level + 1) % 2 ** 64)      # Fibonacci hashing
        slots = (values.view(np.uint64) * multiplier >> np.uint64(64 - bits)).view(np.int64)
        table = self.tables[level]
        found = table[slots]
        if add:
            empty = np.flatnonzero(found < 0)
            table[slots[empty[::-1]]] = empty[::-1]         # each free slot takes the place of one value
            first = empty[table[slots[empty]] == empty]
            table[slots[first]] = np.arange(self.count, self.count + first.size)
            self.values[self.count:self.count + first.size] = values[first]
            self.count += first.size
            found = table[slots]
        lost = np.flatnonzero((self.values[found] != values) & (found >= 0))
        if lost.size:
            found[lost] = self.number(values[lost], add, level + 1)
        return found
