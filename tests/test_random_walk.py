"""The series walk against the dense walk it replaces, on grids small enough for the N x N matrix."""
import shutil
import subprocess
import sys
from functools import lru_cache
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from clipwsss.refine import random_walk
from clipwsss.refine.random_walk import (boundary_affinity, color_affinity, pair_offsets, pair_slices,
                                         propagate, propagate_affinity, straight_path)

SIZES = ((9, 13), (12, 7), (1, 6), (5, 1), (3, 4), (16, 17))


def dense_affinity(boundary: np.ndarray, radius: int) -> np.ndarray:
    """N x N affinities by the definition: every pixel pair within the radius, every pixel near its line."""
    return _dense_affinity(boundary.astype(float).tobytes(), *boundary.shape, radius)


@lru_cache
def _dense_affinity(values: bytes, height: int, width: int, radius: int) -> np.ndarray:
    boundary = np.frombuffer(values).reshape(height, width)
    matrix = np.eye(height * width)
    for first in np.ndindex(height, width):
        for second in np.ndindex(height, width):
            dy, dx = second[0] - first[0], second[1] - first[1]
            length = dy * dy + dx * dx
            if 0 < length < radius * radius:
                near = [boundary[first[0] + y, first[1] + x]
                        for y in range(min(dy, 0), max(dy, 0) + 1) for x in range(min(dx, 0), max(dx, 0) + 1)
                        if (dy * x - dx * y) ** 2 / length < 1]
                matrix[first[0] * width + first[1], second[0] * width + second[1]] = 1 - max(near)
    return matrix


def dense_pairs(affinities: np.ndarray, offsets) -> np.ndarray:
    """N x N affinities from pair maps."""
    _, height, width = affinities.shape
    matrix = np.eye(height * width)
    for values, (dy, dx) in zip(affinities, offsets):
        for y, x in np.ndindex(height, width):
            if y + dy < height and 0 <= x + dx < width:
                pair = y * width + x, (y + dy) * width + x + dx
                matrix[pair] = matrix[pair[::-1]] = values[y, x]
    return matrix


def dense_walk(seeds: np.ndarray, matrix: np.ndarray, beta: float, steps: int) -> np.ndarray:
    """Column-normalised transition matrix to the power of the steps, in float64."""
    powered = matrix ** beta
    transition = np.linalg.matrix_power(powered / powered.sum(0, keepdims=True), steps)
    return (seeds.reshape(len(seeds), -1) @ transition).reshape(seeds.shape)


def sample(size, classes, seed=0, sharp=False):
    rng = np.random.default_rng(seed)
    boundary = rng.random(size) ** 4
    if sharp:
        boundary = (boundary > 0.5).astype(float)
    return rng.random((classes, *size)).astype(np.float32), boundary.astype(np.float32)


def test_offsets_and_paths_by_hand():
    assert pair_offsets(2) == ((0, 1), (1, -1), (1, 0), (1, 1))
    assert len(pair_offsets(5)) == 34
    assert straight_path(0, 2) == ((0, 0), (0, 1), (0, 2))
    assert straight_path(2, -2) == ((0, -1), (0, 0), (1, -2), (1, -1), (1, 0), (2, -2), (2, -1))
    assert set(straight_path(3, 1)) == {(y, x) for y in range(4) for x in range(2)}   # 0.95 away
    first, second = pair_slices((5, 8), 1, -2)
    grid = np.arange(40).reshape(5, 8)
    assert np.array_equal(grid[first], grid[:4, 2:]) and np.array_equal(grid[second], grid[1:, :6])
    boundary = torch.zeros(4, 3)
    boundary[1, 1] = 0.75
    affinities = dict(zip(pair_offsets(4), boundary_affinity(boundary, 4)))
    assert affinities[3, 1][0, 0] == 0.25 and affinities[3, 1][0, 1] == 0.25 and affinities[3, 0][0, 0] == 1
    assert affinities[2, -2][0, 2] == 0.25 and affinities[0, 2][0, 0] == 1


def other_device():
    """Inside the block tensors on the CPU take the path of the other devices."""
    return mock.patch.object(random_walk, "_walk_diagonals", random_walk._walk_slices)


def test_equals_the_dense_walk():
    for size, sharp in product(SIZES, (False, True)):
        for classes, beta, exp_times in ((1, 10, 8), (2, 1, 3), (3, 4, 0), (3, 10, 6)):
            told = f"{size} sharp {sharp}, {classes} classes, beta {beta}, 2^{exp_times} steps"
            cams, boundary = sample(size, classes, sharp=sharp)
            matrix = dense_affinity(boundary, 5)
            expected = dense_walk(cams * (1 - boundary), matrix, beta, 2 ** exp_times)
            walked = propagate(cams, boundary, radius=5, beta=beta, exp_times=exp_times)
            assert walked.dtype == np.float32 and walked.shape == cams.shape
            np.testing.assert_allclose(walked, expected, atol=1e-4, rtol=0, err_msg=told)
            with other_device():
                walked = propagate(cams, boundary, 5, beta, exp_times)
            np.testing.assert_allclose(walked, expected, atol=1e-4, rtol=0, err_msg=told)


def test_other_radii():
    cams, boundary = sample((8, 11), 2, seed=3)
    for radius in (2, 3, 7):
        expected = dense_walk(cams * (1 - boundary), dense_affinity(boundary, radius), 10, 256)
        walked = propagate(cams, boundary, radius=radius)
        np.testing.assert_allclose(walked, expected, atol=1e-4, rtol=0, err_msg=f"radius {radius}")


@pytest.mark.smoke
def test_general_affinities_and_any_number_of_steps():
    for exp_times in (0, 1, 2, 3, 5, 7, 10):
        rng = np.random.default_rng(exp_times)
        offsets = pair_offsets(4)
        affinities = rng.random((len(offsets), 7, 9)).astype(np.float32) * 3
        cams = rng.random((2, 7, 9)).astype(np.float32)
        expected = dense_walk(cams, dense_pairs(affinities, offsets), 2, 2 ** exp_times)
        walked = propagate_affinity(cams, affinities, offsets, exp_times, beta=2)
        np.testing.assert_allclose(walked, expected, atol=1e-4, rtol=0, err_msg=f"2^{exp_times} steps")
        with other_device():
            walked = propagate_affinity(cams, affinities, offsets, exp_times, beta=2)
        np.testing.assert_allclose(walked, expected, atol=1e-4, rtol=0, err_msg=f"2^{exp_times} steps")


def test_psa_defaults_are_beta_8_and_256_steps():
    rng = np.random.default_rng(1)
    features = rng.random((3, 9, 8))
    offsets = pair_offsets(5)
    affinities = np.zeros((len(offsets), 9, 8), np.float32)
    for index, (dy, dx) in enumerate(offsets):
        for y, x in np.ndindex(9, 8):
            if y + dy < 9 and 0 <= x + dx < 8:
                difference = np.abs(features[:, y, x] - features[:, y + dy, x + dx])
                affinities[index, y, x] = np.exp(-difference.mean())
    cams = rng.random((2, 9, 8)).astype(np.float32)
    expected = dense_walk(cams, dense_pairs(affinities, offsets), 8, 256)
    np.testing.assert_allclose(propagate_affinity(cams, affinities, offsets), expected, atol=1e-4)


def test_zero_boundary_goes_to_the_stationary_distribution_and_keeps_constants():
    cams = np.full((1, 9, 9), 0.5, np.float32)
    np.testing.assert_allclose(propagate(cams, np.zeros((9, 9), np.float32)), 0.5, atol=1e-5)
    cams[0, 0, 0] = 1
    walked = propagate(cams, np.zeros((9, 9), np.float32), exp_times=10)
    assert np.ptp(walked) < 1e-4 and walked.max() < 0.51


def test_walls_isolate():
    rows = np.zeros((9, 10), np.float32)
    rows[4] = 1
    cams = np.zeros((1, 9, 10), np.float32)
    cams[0, :4] = 1
    walked = propagate(cams, rows)
    np.testing.assert_allclose(walked[0, :4], 1, atol=1e-4)
    np.testing.assert_allclose(walked[0, 4:], 0, atol=1e-6)
    isolated = np.random.default_rng(0).random((2, 6, 8)).astype(np.float32)
    np.testing.assert_array_equal(propagate(isolated, np.ones((6, 8), np.float32)), 0)
    offsets = pair_offsets(3)
    kept = propagate_affinity(isolated, np.zeros((len(offsets), 6, 8), np.float32), offsets)
    np.testing.assert_allclose(kept, isolated, atol=1e-5)


def test_tensors_batches_and_types_agree():
    pairs = [sample((10, 14), 3, seed) for seed in range(3)]
    cams, boundaries = (np.stack(part) for part in zip(*pairs))
    single = np.stack([propagate(*pair) for pair in pairs])
    assert np.array_equal(propagate(cams, boundaries), single)
    as_tensors = propagate(torch.from_numpy(cams), torch.from_numpy(boundaries))
    assert isinstance(as_tensors, torch.Tensor) and torch.equal(as_tensors, torch.from_numpy(single))
    halves = propagate(torch.from_numpy(cams).double().requires_grad_(), boundaries)
    assert halves.dtype == torch.float32 and not halves.requires_grad and torch.equal(halves, as_tensors)
    assert np.array_equal(propagate(np.asfortranarray(cams), boundaries), single)
    with other_device():
        by_slices = propagate(torch.from_numpy(cams), torch.from_numpy(boundaries))
        alone = propagate(torch.from_numpy(cams[1]), boundaries[1])
    torch.testing.assert_close(by_slices, as_tensors, atol=5e-5, rtol=0)
    torch.testing.assert_close(alone, by_slices[1], atol=1e-6, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_numbers():
    cams, boundary = sample((31, 40), 3)
    walked = propagate(torch.from_numpy(cams).to("cuda"), torch.from_numpy(boundary).to("cuda"))
    assert walked.is_cuda
    np.testing.assert_allclose(walked.cpu().numpy(), propagate(cams, boundary), atol=5e-5)


def test_inputs_are_left_alone():
    cams, boundary = sample((9, 13), 2)
    before = cams.copy(), boundary.copy()
    offsets = pair_offsets(5)
    affinities = boundary_affinity(boundary)
    kept = affinities.clone()
    propagate(cams, boundary)
    propagate_affinity(cams, affinities, offsets, beta=1)
    assert np.array_equal(cams, before[0]) and np.array_equal(boundary, before[1])
    assert torch.equal(affinities, kept)


def test_color_affinity_by_hand():
    image = np.zeros((3, 6, 8), np.uint8)
    image[..., 4:] = 200
    affinities = color_affinity(image, radius=3, sigma=0.3).numpy()
    offsets = pair_offsets(3)
    right = affinities[offsets.index((0, 1))]
    np.testing.assert_array_equal(right[:, [0, 1, 2, 4, 5, 6]], 1)
    spread = 200 * np.sqrt(0.4 * 0.6)      # windows of 5 columns hold 2 of one colour, 3 of the other
    np.testing.assert_allclose(right[:, 3], np.exp(-200 / (0.3 * (spread + 0.2))), rtol=1e-4)
    assert (right[:, 7] == 0).all()                 # the partner lies outside
    scaled = color_affinity(torch.from_numpy(image) / 255, radius=3, sigma=0.3).numpy()
    np.testing.assert_allclose(scaled, affinities, atol=1e-4)
    assert color_affinity(image, radius=3, size=(3, 4)).shape == (len(offsets), 3, 4)


def test_color_walk_fills_the_object_and_stops_at_its_edge():
    rng = np.random.default_rng(0)
    image = rng.normal(60, 4, (24, 30, 3)).transpose(2, 0, 1)
    image[:, 6:18, 8:22] += 120
    cam = np.zeros((1, 24, 30), np.float32)
    cam[0, 10:13, 12:16] = 1
    walked = propagate_affinity(cam, color_affinity(image, radius=3), pair_offsets(3), exp_times=6, beta=1)[0]
    inside = np.zeros((24, 30), bool)
    inside[6:18, 8:22] = True
    assert walked[inside].min() > 5 * walked[~inside].max()
    assert np.isfinite(color_affinity(np.full((3, 7, 9), 128, np.uint8)).numpy()).all()


BAD = (
    (dict(boundary=np.zeros((9, 12), np.float32)), "boundary: cams \\[2, 9, 13\\] need"),
    (dict(boundary=np.full((9, 13), 1.5, np.float32)), "boundary: values must lie in \\[0, 1\\]"),
    (dict(boundary=np.full((9, 13), np.nan, np.float32)), "boundary: holds NaN"),
    (dict(cams=np.full((2, 9, 13), np.inf, np.float32)), "cams: holds NaN or infinite"),
    (dict(cams=np.zeros((0, 9, 13), np.float32)), "cams: is empty"),
    (dict(cams=np.zeros((9, 13), np.float32)), "boundary: cams"),
    (dict(cams=[[1.0]]), "cams: need a numpy array or a torch tensor"),
    (dict(radius=1), "radius: need an integer"),
    (dict(beta=0), "beta > 0"),
    (dict(exp_times=-1), "exp_times: need an integer"),
    (dict(exp_times=21), "exp_times: need an integer"),
)


def test_bad_input_is_named():
    cams, boundary = sample((9, 13), 2)
    for change, message in BAD:
        with pytest.raises(ValueError, match=message) as caught:
            propagate(**{"cams": cams, "boundary": boundary, **change})
        assert "\n" not in str(caught.value)


def test_bad_affinities_are_named():
    cams = np.zeros((1, 5, 6), np.float32)
    with pytest.raises(ValueError, match="affinities: cams .* 2 offsets need affinities of \\[2, 5, 6\\]"):
        propagate_affinity(cams, np.zeros((3, 5, 6), np.float32), ((0, 1), (1, 0)))
    with pytest.raises(ValueError, match="offsets: need each pair once"):
        propagate_affinity(cams, np.zeros((2, 5, 6), np.float32), ((0, 1), (0, -1)))
    with pytest.raises(ValueError, match="affinities: need values >= 0"):
        propagate_affinity(cams, np.full((1, 5, 6), -1, np.float32), ((0, 1),))
    with pytest.raises(ValueError, match="image: need"):
        color_affinity(np.zeros((5, 6, 3), np.uint8))
    with pytest.raises(ValueError, match="sigma: need"):
        color_affinity(np.zeros((3, 5, 6), np.uint8), sigma=0)


def test_runs_alone_in_an_empty_folder(tmp_path):
    shutil.copy(Path(random_walk.__file__), tmp_path / "random_walk.py")
    code = ("import numpy, random_walk; "
            "print(random_walk.propagate(numpy.ones((1, 5, 6)), numpy.zeros((5, 6))).round(3).min())")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "1.0", done.stderr
