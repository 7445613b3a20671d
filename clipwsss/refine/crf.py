"""Fully connected CRF by mean field over a permutohedral lattice, in numpy and scipy.

Krähenbühl & Koltun, NIPS 2011, with Potts compatibility; lattice of Adams, Baek & Davis, Eurographics 2010.
Conventions and results are those of pydensecrf's DenseCRF2D. It is fast because the lattice is built from
whole arrays; both kernels share one sparse matrix that slices vertices back to pixels, and its transpose that
splats pixels onto vertices; labels of equal energies are filtered once, and the last label not at all, since
the marginals of a pixel sum to one; and several unaries of one image share its lattice.
"""
import math
from functools import lru_cache

import numpy as np
from scipy import sparse

GAUSSIAN = (3.0, 3.0)           # IRN's values (crf_inference_label): standard deviation in pixels, weight
BILATERAL = (50.0, 5.0, 10.0)   # standard deviations in pixels and in grey levels, weight
BLOCK = 16384                   # pixels handled at once: the temporaries of a block stay in the cache


def unary_from_labels(labels: np.ndarray, n_labels: int, confidence: float = 0.7) -> np.ndarray:
    """Energies float32 [C, H, W] of integer labels [H, W] that are right with the probability `confidence`.

    The other labels share the rest of the probability. Pixels of value 255 get equal energies. pydensecrf's
    zero_unsure=True corresponds to labels - 1, with 255 in place of 0. ValueError for labels outside 0..C-1
    and for a confidence outside (0, 1).
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
    """Energies float32 [C, H, W] of probabilities [C, H, W] in [0, 1]: -log, at most that of 1e-5.

    ValueError for other shapes and values.
    """
    probabilities = np.asarray(probabilities)
    low = probabilities.min()
    high = probabilities.max()
    if probabilities.ndim != 3 or not (low >= 0 and high <= 1 + 1e-3):
        raise ValueError(f"probabilities: need [C, H, W] in [0, 1], got {list(probabilities.shape)} "
                         f"from {low:g} to {high:g}")
    return -np.log(np.clip(probabilities, 1e-5, 1)).astype(np.float32)


def dense_crf(image: np.ndarray, unary: np.ndarray, iterations: int = 10,
              gaussian: tuple[float, float] | None = GAUSSIAN,
              bilateral: tuple[float, float, float] | None = BILATERAL) -> np.ndarray:
    """Mean-field marginals float32 [C, H, W] of a fully connected CRF with Potts compatibility.

    image: uint8 [H, W, 3]. unary: energies [C, H, W], or [U, C, H, W] for several that are filtered together.
    gaussian: (sxy, weight) of the kernel over positions. bilateral: (sxy, srgb, weight) of the kernel over
    positions and colours. None leaves a kernel out. The result has the shape of `unary`. ValueError names the
    argument that does not fit.
    """
    lattice = Lattice(image, gaussian, bilateral)
    unary = np.asarray(unary)
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
        kind = getattr(image, "dtype", type(image).__name__)
        shape = list(np.shape(image))
        if kind != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise ValueError(f"image: need a uint8 array [H, W, 3], got {kind} {shape}")
        numbers = [*(gaussian or ()), *(bilateral or ())]
        if not numbers or not all(number > 0 for number in numbers):
            raise ValueError(f"gaussian, bilateral: need positive numbers, got {gaussian} and {bilateral}")
        height, width, _ = shape
        kernels = []  # (matrix [N, M + 1], neighbours, weight) of each kernel
        if gaussian is not None:
            deviation, weight = gaussian
            kernels.append((*_spatial_kernel(height, width, deviation), weight))
        if bilateral is not None:
            deviation, color_deviation, weight = bilateral
            colors = image.reshape(-1, 3).T / np.float32(color_deviation)
            features = np.concatenate((_positions(height, width, deviation), colors))
            kernels.append((*_kernel(features), weight))
        # One matrix for both kernels: the columns of the second stand beside those of the first.
        weighted = [matrix * np.float32(math.sqrt(weight)) for matrix, _, weight in kernels]
        self.slice = sparse.hstack(weighted, "csr")
        self.splat = self.slice.T
        self.blurs = []  # (rows of the splatted values, neighbours) of each kernel
        start = 0
        for matrix, neighbours, _ in kernels:
            end = start + matrix.shape[1]
            self.blurs.append((slice(start, end), neighbours))
            start = end
        self.total = self.filter(np.ones((height * width, 1), np.float32))[:, 0]

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
    """Marginals [U, C, N] of energies [U, C, N] by mean-field iterations; none of these gives the softmax.

    Labels of equal energies have equal marginals: they form a group of `count` labels, and only the marginal
    of one label of each group is filtered. The last group is not filtered at all, as the marginals of a pixel
    sum to one: count[0] * marginal[0] + ... + count[last] * marginal[last] = 1.
    """
    groups = [_group_labels(energy) for energy in energies]
    columns = []  # where in `filtered` the groups of each unary stand, the last of them left out
    width = 0
    for logits, _, _ in groups:
        columns.append(slice(width, width + len(logits) - 1))
        width += len(logits) - 1
    if width > 2:
        width = math.ceil(width / 4) * 4                    # scipy is slower on 3 columns than on 4
    pixels = energies.shape[2]
    filtered = np.zeros((pixels, width), np.float32)
    marginals = np.empty_like(energies)
    for iteration in range(iterations + 1):
        if iteration > 0:
            messages = lattice.filter(filtered)
        for start in range(0, pixels, BLOCK):
            block = slice(start, start + BLOCK)
            for (logits, counts, group_of), own, result in zip(groups, columns, marginals):
                scores = logits[:, block].copy()
                if iteration > 0:
                    received = messages[block, own].T
                    scores[:-1] += received
                    scores[-1] += (lattice.total[block] - counts[:-1] @ received) / counts[-1]
                scores -= scores.max(0)
                np.exp(scores, out=scores)
                scores /= counts @ scores
                filtered[block, own] = scores[:-1].T
                if iteration == iterations:
                    result[:, block] = scores[group_of]
    return marginals


def _group_labels(energy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups of labels that have equal energies [C, N].

    Returns the negated energies [G, N] of the groups, how many labels each has [G], and each label's group
    [C]. Energies a, b, a, a of four labels give -a and -b, the counts 3 and 1, and the groups 0 1 0 0.
    """
    first = []     # the first label of each group
    group_of = []  # the group of each label
    for label, row in enumerate(energy):
        equal = [group for group, other in enumerate(first) if np.array_equal(row, energy[other])]
        if equal:
            group_of.append(equal[0])
        else:
            group_of.append(len(first))
            first.append(label)
    return -energy[first], np.bincount(group_of).astype(np.float32), np.array(group_of)


def _positions(height: int, width: int, deviation: float) -> np.ndarray:
    """x and y of all pixels in standard deviations, float32 [2, N]."""
    return np.indices((height, width), np.float32)[::-1].reshape(2, -1) / np.float32(deviation)


@lru_cache(maxsize=8)
def _spatial_kernel(height: int, width: int, deviation: float) -> tuple[sparse.csr_array, np.ndarray]:
    """`_kernel` of the positions, which is the same for all images of a size."""
    return _kernel(_positions(height, width, deviation))


# The permutohedral lattice for d features. `_elevate` maps a point to d + 1 coordinates that sum to zero.
# Vertices are the points whose integer coordinates sum to zero and have one remainder when divided by d + 1.
# They cut the plane into simplices of d + 1 corners, one of each remainder.
#
# Example with d = 2, the point (1, 2):
#   elevated    3.73  0.27 -4.00    sum to zero
#   nearest     3     0    -3       each rounded to a multiple of d + 1 = 3: the corner of remainder 0
#   offset      0.73  0.27 -1.00    elevated - nearest
#   rank        0     1     2       place of each coordinate by falling offset
#   corner 1    4     1    -5       corner 0 plus 1, and minus 3 where the rank is 2
#   corner 2    5    -1    -4       corner 1 plus 1, and minus 3 where the rank is 1
#   weights     0.42 of corner 0, 0.42 of corner 1, 0.15 of corner 2: their weighted sum is the point
#
# A vertex is stored as one integer, its key: the sum of its first d coordinates times `radix`. The last
# coordinate follows from the others.


def _kernel(features: np.ndarray) -> tuple[sparse.csr_array, np.ndarray]:
    """The Gaussian kernel of N pixels on the lattice of M vertices; symmetric normalisation.

    features: float32 [d, N] >= 0, in standard deviations. Returns the matrix [N, M + 1] that interpolates the
    pixels from the vertices, normalised, and the vertices before and behind each vertex along each axis, intp
    [d + 1, 2, M]. M stands where there is none, and for the matrix's last column, which is zero.
    """
    dim, pixels = features.shape
    corners = dim + 1
    scales = math.sqrt(2 / 3) * corners / np.sqrt(np.arange(1, corners) * np.arange(2, corners + 1))
    radix = _key_radix(scales * features.max(1))
    table = _KeyTable(corners * pixels)
    vertices = np.empty((pixels, corners), np.int32)
    weights = np.empty((pixels, corners), np.float32)
    for start in range(0, pixels, BLOCK):
        block = slice(start, start + BLOCK)
        elevated = _elevate(features[:, block], scales.astype(np.float32))
        nearest, rank = _round_to_lattice(elevated)
        points = rank.shape[1]
        place = rank.astype(np.intp) * points + np.arange(points)   # by rank, in a flattened [d + 1, n]
        weights[block] = _corner_weights(elevated, nearest, place)
        keys = _corner_keys(nearest, place, radix)
        vertices[block] = table.add(keys.reshape(-1)).reshape(keys.shape).T
    neighbours = _vertex_neighbours(table, radix)
    starts = np.arange(0, vertices.size + 1, corners, dtype=np.int32)
    matrix = sparse.csr_array((weights.ravel(), vertices.ravel(), starts), shape=(pixels, table.count + 1))
    sums = matrix @ _blur(matrix.T @ np.ones((pixels, 1), np.float32), neighbours)
    alpha = 1 / (1 + 2.0 ** -dim)                           # the lattice's scale, as in pydensecrf
    matrix.data *= np.repeat(np.sqrt(alpha / (alpha * sums + 1e-20)), corners)
    return matrix, neighbours


def _blur(values: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Convolves vertex values [M + 1, c] with 1/2, 1, 1/2 along each axis, in place; the last row is zero."""
    one = np.empty_like(values[:-1])
    other = np.empty_like(values[:-1])
    for before, behind in neighbours:
        values.take(before, axis=0, out=one, mode="clip")
        values.take(behind, axis=0, out=other, mode="clip")
        one += other
        one *= np.float32(0.5)
        values[:-1] += one
    return values


def _key_radix(reach: np.ndarray) -> np.ndarray:
    """What each of the first d coordinates of a vertex counts in its key, int64 [d].

    reach: [d], the largest scaled features. Elevated coordinate i lies between -i * reach[i - 1] and the sum
    of reach[i:]. With ranges of 100, 20 and 30 values for three coordinates, the radix is 600, 30, 1.
    """
    dim = len(reach)
    below = np.arange(dim) * np.append(0, reach[:-1])
    above = reach[::-1].cumsum()[::-1]
    ranges = np.ceil(below + above) + 8 * (dim + 1)         # with a margin for corners and their neighbours
    if not ranges.prod() < 2 ** 62:
        raise ValueError("gaussian, bilateral: the standard deviations are too small for this image")
    return np.append(ranges[:0:-1].astype(np.int64).cumprod()[::-1], 1)


def _elevate(features: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Points float32 [d, n] in the d + 1 coordinates of the lattice's plane (Adams et al., section 3)."""
    dim, count = features.shape
    elevated = np.empty((dim + 1, count), np.float32)
    total = np.zeros(count, np.float32)
    for axis in range(dim, 0, -1):
        scaled = features[axis - 1] * scales[axis - 1]
        elevated[axis] = total - np.float32(axis) * scaled
        total += scaled
    elevated[0] = total
    return elevated


def _round_to_lattice(elevated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corner of remainder 0 of the simplices around points [d + 1, n], and their coordinates' ranks."""
    corners = len(elevated)
    nearest = np.rint(elevated * np.float32(1 / corners))
    excess = nearest.sum(0)                                 # not 0 where rounding has left the plane
    nearest *= corners
    offset = elevated - nearest
    rank = np.zeros_like(elevated)
    for axis in range(corners - 1):
        smaller = (offset[axis] < offset[axis + 1:]).view(np.int8)
        rank[axis] += smaller.sum(0, dtype=np.int8)
        rank[axis + 1:] += 1 - smaller
    # Back to the plane: with an excess of 2 the two coordinates of highest rank are lowered by d + 1, with an
    # excess of -2 the two of lowest rank are raised, and the ranks go round.
    rank += excess
    wrap = np.float32(corners) * ((rank < 0).view(np.int8) - (rank >= corners).view(np.int8))
    rank += wrap
    nearest += wrap
    return nearest, rank


def _corner_weights(elevated: np.ndarray, nearest: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Barycentric weights float32 [n, d + 1] of the corners of remainders 0..d."""
    corners, count = elevated.shape
    ordered = np.empty_like(elevated)                       # offsets / (d + 1), the largest first
    ordered.reshape(-1)[place] = (elevated - nearest) * np.float32(1 / corners)
    weights = np.empty((count, corners), np.float32)
    weights[:, 0] = 1 + ordered[-1] - ordered[0]
    for remainder in range(1, corners):
        np.subtract(ordered[-1 - remainder], ordered[-remainder], out=weights[:, remainder])
    return weights


def _corner_keys(nearest: np.ndarray, place: np.ndarray, radix: np.ndarray) -> np.ndarray:
    """Keys int64 [d + 1, n] of the corners of remainders 0..d."""
    corners, count = nearest.shape
    lowered = np.empty((corners, count), np.int64)          # by rank: d + 1 times the coordinate's radix
    lowered.reshape(-1)[place] = corners * np.append(radix, 0)[:, None]
    keys = np.empty((corners, count), np.int64)
    keys[0] = (radix[:, None] * nearest[:-1].astype(np.int64)).sum(0)
    for remainder in range(1, corners):                     # plus 1 in each coordinate, minus d + 1 in one
        keys[remainder] = keys[remainder - 1] + radix.sum() - lowered[corners - remainder]
    return keys


def _vertex_neighbours(table: "_KeyTable", radix: np.ndarray) -> np.ndarray:
    """Vertices before and behind each of M vertices along each axis, intp [d + 1, 2, M]; M where none is.

    A step along an axis is plus 1 in each coordinate and minus d + 1 in the axis' own.
    """
    corners = len(radix) + 1
    count = table.count
    steps = radix.sum() - corners * np.append(radix, 0)
    neighbours = np.full((corners, 2, count), count, np.intp)
    for (before, behind), step in zip(neighbours, steps):
        found = table.find(table.keys[:count] - step)
        own = np.flatnonzero(found >= 0)
        before[own] = found[own]
        behind[found[own]] = own
    return neighbours


class _KeyTable:
    """Numbers int64 keys in the order of their appearance: hash tables that take whole arrays.

    A slot of a table holds the number of one key, or -1. A key whose slot is taken by another key goes to the
    next table. Example: the keys 50, 70, 50 come first, and slot 3 is meant for all of them. The first takes
    it and gets number 0, as does the other 50; 70 goes to the next table and gets number 1. The answer is 0,
    1, 0.
    """

    def __init__(self, capacity: int) -> None:
        self.keys = np.full(capacity + 1, np.iinfo(np.int64).min)   # by number
        self.count = 0
        self.bits = capacity.bit_length() - 1
        self.tables: list[np.ndarray] = []

    def add(self, keys: np.ndarray, level: int = 0) -> np.ndarray:
        """Numbers int32 of the keys; a new key gets the next number."""
        slots = self._slots(keys, level)
        if level == len(self.tables):
            self.tables.append(np.full(1 << self._bits(level), -1, np.int32))
        table = self.tables[level]
        free = np.flatnonzero(table[slots] < 0)
        # Each of these keys writes its place into its slot, the last one first: the first one's place stays.
        table[slots[free[::-1]]] = free[::-1]
        new = free[table[slots[free]] == free]
        end = self.count + new.size
        table[slots[new]] = np.arange(self.count, end)
        self.keys[self.count:end] = keys[new]
        self.count = end
        numbers = table[slots]
        other = np.flatnonzero(self.keys[numbers] != keys)
        if other.size:
            numbers[other] = self.add(keys[other], level + 1)
        return numbers

    def find(self, keys: np.ndarray, level: int = 0) -> np.ndarray:
        """Numbers int32 of the keys, -1 for unknown ones."""
        if level == len(self.tables):
            return np.full(keys.shape, -1, np.int32)
        numbers = self.tables[level][self._slots(keys, level)]
        other = np.flatnonzero((self.keys[numbers] != keys) & (numbers >= 0))
        if other.size:
            numbers[other] = self.find(keys[other], level + 1)
        return numbers

    def _bits(self, level: int) -> int:
        """Binary logarithm of a table's size; each is a quarter of the one before."""
        return max(10, self.bits - 2 * level)

    def _slots(self, keys: np.ndarray, level: int) -> np.ndarray:
        """The slots that are meant for the keys, by Fibonacci hashing: the top bits of a product."""
        multiplier = np.uint64(0x9E3779B97F4A7C15 * (2 * level + 1) % 2 ** 64)
        return (keys.view(np.uint64) * multiplier >> np.uint64(64 - self._bits(level))).view(np.int64)
