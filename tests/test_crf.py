"""The CRF against a plain lattice of dictionaries, against pydensecrf where installed, and its edge cases."""
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipwsss.refine import crf
from clipwsss.refine.crf import dense_crf, unary_from_labels, unary_from_probabilities

SIZES = ((5, 7), (6, 4), (1, 9), (8, 1), (1, 1))
KERNELS = ((2, (3, 3), (50, 5, 10)), (3, (1.5, 2), (4, 20, 3)), (4, None, (8, 13, 4)), (2, (0.7, 5), None))


def scene(size, labels, seed=0):
    """A noisy image of two colours and random energies."""
    rng = np.random.default_rng(seed)
    image = np.where(rng.random((*size, 1)) < 0.5, 60, 190) + rng.normal(0, 12, (*size, 3))
    image[:, size[1] // 2:] += 40
    unary = rng.random((labels, *size)) * 4
    return image.clip(0, 255).astype(np.uint8), unary.astype(np.float32)


def plain_simplex(feature):
    """Vertices (as tuples) and barycentric weights of one point, by the definitions of Adams et al."""
    dim = len(feature)
    scaled = [value * np.sqrt(2 / 3) * (dim + 1) / np.sqrt((axis + 1) * (axis + 2))
              for axis, value in enumerate(feature)]
    elevated = np.array([sum(scaled[axis:]) - (axis and axis * scaled[axis - 1]) for axis in range(dim + 1)])
    base = np.rint(elevated / (dim + 1)) * (dim + 1)
    order = sorted(range(dim + 1), key=lambda axis: (base[axis] - elevated[axis], axis))
    excess = round(base.sum() / (dim + 1))
    for axis in order[len(order) - excess:] if excess > 0 else []:
        base[axis] -= dim + 1
    for axis in order[:-excess] if excess < 0 else []:
        base[axis] += dim + 1
    order = sorted(range(dim + 1), key=lambda axis: (base[axis] - elevated[axis], axis))
    gaps = [(elevated - base)[axis] / (dim + 1) for axis in order]
    weights = [1 + gaps[-1] - gaps[0]] + [gaps[step - 1] - gaps[step] for step in range(dim, 0, -1)]
    vertices = []
    for remainder in range(dim + 1):
        moved = base + remainder
        for axis in order[dim + 1 - remainder:]:
            moved[axis] -= dim + 1
        vertices.append(tuple(int(value) for value in moved))
    return vertices, weights


def plain_filter(features):
    """The filter of a kernel as a function of values [N], with symmetric normalisation."""
    dim = len(features)
    points = [plain_simplex(feature) for feature in features.T]

    def lattice(values):
        grid = defaultdict(float)
        for (vertices, weights), value in zip(points, values):
            for vertex, weight in zip(vertices, weights):
                grid[vertex] += weight * value
        for axis in range(dim + 1):
            step = np.ones(dim + 1, int)
            step[axis] -= dim + 1
            both = {vertex: (tuple(vertex + step), tuple(vertex - step)) for vertex in grid}
            grid = {vertex: value + sum(grid.get(near, 0) for near in both[vertex]) / 2
                    for vertex, value in grid.items()}
        alpha = 1 / (1 + 2.0 ** -dim)
        return np.array([alpha * sum(weight * grid[vertex] for vertex, weight in zip(vertices, weights))
                         for vertices, weights in points])

    norm = 1 / np.sqrt(lattice(np.ones(features.shape[1])))
    return lambda values: norm * lattice(norm * values)


def plain_crf(image, unary, iterations, gaussian, bilateral):
    height, width, _ = image.shape
    rows, columns = (part.reshape(-1).astype(float) for part in np.mgrid[:height, :width])
    kernels = []
    if gaussian:
        kernels.append((plain_filter(np.stack((columns, rows)) / gaussian[0]), gaussian[1]))
    if bilateral:
        places, colors = np.stack((columns, rows)) / bilateral[0], image.reshape(-1, 3).T / bilateral[1]
        kernels.append((plain_filter(np.concatenate((places, colors))), bilateral[2]))
    energies = unary.reshape(len(unary), -1).astype(float)
    scores = -energies
    for iteration in range(iterations + 1):
        marginals = np.exp(scores - scores.max(0))
        marginals /= marginals.sum(0)
        scores = -energies
        for kernel, weight in kernels:
            scores = scores + weight * np.stack([kernel(row) for row in marginals])
    return marginals.reshape(unary.shape)


MISSING = "pydensecrf is not installed (pip install pydensecrf2)"


def pydensecrf_marginals(image, unary, iterations=10, gaussian=crf.GAUSSIAN, bilateral=crf.BILATERAL):
    dense = pytest.importorskip("pydensecrf.densecrf", reason=MISSING)
    labels, height, width = unary.shape
    model = dense.DenseCRF2D(width, height, labels)
    model.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1)))
    if gaussian:
        model.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
    if bilateral:
        sxy, srgb, weight = bilateral
        model.addPairwiseBilateral(sxy=sxy, srgb=srgb, compat=weight, rgbim=image.copy())
    return np.array(model.inference(iterations)).reshape(unary.shape)


@pytest.mark.smoke
def test_equals_the_plain_lattice():
    for size in SIZES:
        for labels, gaussian, bilateral in KERNELS:
            image, unary = scene(size, labels)
            expected = plain_crf(image, unary, 3, gaussian, bilateral)
            marginals = dense_crf(image, unary, 3, gaussian, bilateral)
            assert marginals.dtype == np.float32
            np.testing.assert_allclose(marginals, expected, atol=2e-4, err_msg=f"{size} {gaussian} {bilateral}")


def test_a_point_in_its_simplex_by_hand():
    """The example of the comment in crf.py: the point (1, 2)."""
    scales = np.array([3, 3], np.float32) * np.sqrt(np.array([1 / 3, 1 / 9], np.float32))
    elevated = crf._elevate(np.array([[1.0], [2.0]], np.float32), scales)
    np.testing.assert_allclose(elevated[:, 0], [2 + 3 ** 0.5, 2 - 3 ** 0.5, -4], rtol=1e-5)
    nearest, rank = crf._round_to_lattice(elevated)
    assert nearest[:, 0].tolist() == [3, 0, -3] and rank[:, 0].tolist() == [0, 1, 2]
    weights = crf._corner_weights(elevated, nearest, rank.astype(int))
    corners = np.array([[3, 0, -3], [4, 1, -5], [5, -1, -4]])
    np.testing.assert_allclose(weights[0], [0.4226, 0.4226, 0.1547], atol=1e-4)
    np.testing.assert_allclose(weights[0] @ corners, elevated[:, 0], rtol=1e-5)
    keys = crf._corner_keys(nearest, rank.astype(int), np.array([100, 1]))
    assert keys[:, 0].tolist() == [300, 401, 499]


def test_equals_pydensecrf():
    for size in ((23, 31), (40, 17), (1, 50), (50, 1)):
        for labels in (1, 2, 3, 5, 11):
            for kernels in (((3, 3), (50, 5, 10)), ((1, 3), (67, 3, 4)), (None, (80, 13, 10))):
                image, unary = scene(size, labels, seed=labels)
                expected = pydensecrf_marginals(image, unary, 3, *kernels)
                marginals = dense_crf(image, unary, 3, *kernels)
                np.testing.assert_allclose(marginals, expected, atol=2e-4, err_msg=f"{size} {labels} {kernels}")


def test_equals_pydensecrf_on_photographs(voc_sample):
    names = (voc_sample / "VOC2012/ImageSets/Segmentation/train.txt").read_text().split()
    for name in names[::3]:                                   # all of them in tests/benchmarks/bench_crf.py
        image = np.array(Image.open(voc_sample / f"VOC2012/JPEGImages/{name}.jpg").convert("RGB"))
        mask = np.array(Image.open(voc_sample / f"VOC2012/SegmentationClassAug/{name}.png"))
        classes = np.unique(mask[mask < 255])
        labels = np.where(mask < 255, np.searchsorted(classes, mask), 255)
        unary = unary_from_labels(labels, len(classes))
        expected = pydensecrf_marginals(image, unary)
        marginals = dense_crf(image, unary)
        assert (marginals.argmax(0) == expected.argmax(0)).mean() >= 0.9999
        assert np.abs(marginals - expected).mean() < 1e-5     # a pixel between two labels magnifies rounding


def test_unaries_equal_pydensecrf():
    utils = pytest.importorskip("pydensecrf.utils", reason=MISSING)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (6, 9))
    unary = unary_from_labels(labels, 4, 0.8)
    expected = utils.unary_from_labels(labels, 4, 0.8, zero_unsure=False)
    np.testing.assert_array_equal(unary.reshape(4, -1), expected)
    unsure = unary_from_labels(np.where(labels == 0, 255, labels - 1), 3, 0.8)
    np.testing.assert_allclose(unsure.reshape(3, -1), utils.unary_from_labels(labels, 3, 0.8), rtol=1e-6)
    probabilities = rng.random((4, 6, 9)) ** 9
    expected = utils.unary_from_softmax(probabilities).reshape(4, 6, 9)
    np.testing.assert_allclose(unary_from_probabilities(probabilities), expected, rtol=1e-6)


def test_unaries_by_hand():
    unary = unary_from_labels(np.array([[0, 2, 255]], np.uint8), 3, 0.7)
    assert unary.dtype == np.float32 and unary.shape == (3, 1, 3)
    expected = [[0.7, 0.15, 1 / 3], [0.15, 0.15, 1 / 3], [0.15, 0.7, 1 / 3]]
    np.testing.assert_allclose(np.exp(-unary[:, 0]), expected, rtol=1e-6)
    assert (unary_from_labels(np.full((2, 3), 255), 4) == np.float32(np.log(4))).all()
    assert unary_from_labels(np.zeros((2, 3), int), 1).shape == (1, 2, 3)
    unary = unary_from_probabilities(np.array([0.0, 0.5, 1.0]).reshape(3, 1, 1))
    assert unary.dtype == np.float32
    np.testing.assert_allclose(unary.ravel(), -np.log([1e-5, 0.5, 1]), rtol=1e-5, atol=0)


def test_marginals_are_distributions_and_smooth():
    image = np.full((20, 30, 3), 40, np.uint8)
    image[:, 15:] = 200
    labels = (np.arange(30) >= 15) * np.ones((20, 1), int)
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random((20, 30)) < 0.2, 1 - labels, labels)
    marginals = dense_crf(image, unary_from_labels(noisy, 2))
    np.testing.assert_allclose(marginals.sum(0), 1, atol=1e-6)
    assert (marginals.argmax(0) == labels).all()
    flat = np.zeros((12, 9, 3), np.uint8)
    assert np.isfinite(dense_crf(flat, scene((12, 9), 3)[1])).all()


def test_no_iterations_is_the_softmax_and_one_label_is_certain():
    image, unary = scene((7, 9), 3)
    expected = np.exp(-unary) / np.exp(-unary).sum(0)
    np.testing.assert_allclose(dense_crf(image, unary, iterations=0), expected, rtol=1e-5)
    np.testing.assert_array_equal(dense_crf(image, unary[:1]), np.ones((1, 7, 9)))
    np.testing.assert_allclose(dense_crf(image, np.zeros((4, 7, 9), np.float32)), 0.25, rtol=1e-5)


def test_equal_labels_are_merged_without_a_trace():
    image, unary = scene((9, 14), 2)
    five = unary[[0, 1, 1, 0, 1]]
    nudged = five.copy()
    nudged[:, 0, 0] += np.arange(5) * 1e-7
    marginals = dense_crf(image, five)
    np.testing.assert_array_equal(marginals[[0, 1, 1, 0, 1]], marginals)
    np.testing.assert_allclose(dense_crf(image, five, 2), dense_crf(image, nudged, 2), atol=1e-4)


def test_several_unaries_share_a_lattice():
    image, first = scene((11, 16), 3)
    second = scene((11, 16), 3, seed=1)[1]
    third = unary_from_labels(np.zeros((11, 16), int), 3)
    alone = [dense_crf(image, unary) for unary in (first, second, third)]
    together = dense_crf(image, np.stack((first, second, third)))
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)
    np.testing.assert_array_equal(dense_crf(image, first.astype(np.float64)), alone[0])


def test_inputs_are_left_alone():
    image, unary = scene((8, 9), 3)
    before = image.copy(), unary.copy()
    image.setflags(write=False)
    unary.setflags(write=False)
    dense_crf(image, unary)
    assert np.array_equal(image, before[0]) and np.array_equal(unary, before[1])
    flipped = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(unary[..., ::-1])
    np.testing.assert_array_equal(dense_crf(image[:, ::-1], unary[..., ::-1]), dense_crf(*flipped))


def test_the_table_of_keys_survives_clashes():
    rng = np.random.default_rng(0)
    keys = rng.integers(-2 ** 60, 2 ** 60, 6000)[rng.integers(0, 6000, 20000)]
    table = crf._KeyTable(20000)
    assert table.find(keys[:3]).tolist() == [-1, -1, -1]
    numbers = np.concatenate([table.add(part) for part in np.split(keys, 8)])
    assert len(table.tables) > 1                              # the sample is large enough to clash
    assert np.array_equal(table.keys[numbers], keys)
    assert table.count == len(np.unique(keys)) == len(np.unique(numbers))
    asked = np.concatenate((keys[:50], rng.integers(-2 ** 60, 2 ** 60, 5000)))
    found = table.find(asked)
    assert np.array_equal(found[:50], numbers[:50])
    assert np.array_equal(found >= 0, np.isin(asked, keys)) and table.count == len(np.unique(keys))


BAD = (
    (dict(image=np.zeros((8, 9, 3), np.float32)), "image: need a uint8 array \\[H, W, 3\\], got float32"),
    (dict(image=np.zeros((8, 9), np.uint8)), "image: need a uint8 array"),
    (dict(image=np.zeros((3, 8, 9), np.uint8)), "image: need a uint8 array"),
    (dict(image="photo.jpg"), "image: need a uint8 array .* got str"),
    (dict(unary=np.zeros((2, 9, 8), np.float32)), "unary: need \\[C, 8, 9\\] .* got \\[2, 9, 8\\]"),
    (dict(unary=np.zeros((2, 72), np.float32)), "unary: need"),
    (dict(unary=np.zeros((0, 8, 9), np.float32)), "unary: need"),
    (dict(unary=np.full((2, 8, 9), np.nan, np.float32)), "unary: need finite"),
    (dict(unary=np.zeros((2, 8, 9), np.int64)), "unary: need finite floating point energies, got int64"),
    (dict(iterations=-1), "iterations: need"),
    (dict(iterations=2.5), "iterations: need"),
    (dict(gaussian=(0, 3)), "gaussian, bilateral: "),
    (dict(bilateral=(50, -5, 10)), "gaussian, bilateral: "),
    (dict(gaussian=None, bilateral=None), "gaussian, bilateral: "),
    (dict(bilateral=(1e-7, 1e-6, 10)), "gaussian, bilateral: the standard deviations are too small"),
)


def test_bad_input_is_named():
    image, unary = scene((8, 9), 2)
    for change, message in BAD:
        with pytest.raises(ValueError, match=message) as caught:
            dense_crf(**{"image": image, "unary": unary, **change})
        assert "\n" not in str(caught.value)


def test_bad_unaries_are_named():
    with pytest.raises(ValueError, match="labels: must be 0 to 1, or 255 to ignore, found 2"):
        unary_from_labels(np.array([[0, 2]]), 2)
    with pytest.raises(ValueError, match="found -1"):
        unary_from_labels(np.array([[0, -1]]), 2)
    with pytest.raises(ValueError, match="labels: need integers"):
        unary_from_labels(np.array([[0.5]]), 2)
    with pytest.raises(ValueError, match="labels: need integers"):
        unary_from_labels(np.zeros(4, int), 2)
    with pytest.raises(ValueError, match="confidence: must lie"):
        unary_from_labels(np.array([[0]]), 2, confidence=1)
    for value in (np.nan, -0.1, 4.0):
        with pytest.raises(ValueError, match="probabilities: need"):
            unary_from_probabilities(np.full((2, 3, 3), value))
    with pytest.raises(ValueError, match="probabilities: need"):
        unary_from_probabilities(np.zeros((3, 3)))


def test_runs_alone_in_an_empty_folder(tmp_path):
    shutil.copy(Path(crf.__file__), tmp_path / "crf.py")
    code = ("import numpy, crf; labels = numpy.zeros((4, 5), int); "
            "image = numpy.zeros((4, 5, 3), numpy.uint8); "
            "print(crf.dense_crf(image, crf.unary_from_labels(labels, 2)).argmax(0).sum())")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "0", done.stderr
