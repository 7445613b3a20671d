"""Multi-scale CAMs against a plain reference, batched = single, files for a split of mixed sizes."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clipwsss.cams.cam_files import list_cams, read_cam
from clipwsss.cams.generator import build_generator
from clipwsss.cams.maps import finished_cams, merge_scales, multi_scale_maps, write_cams
from clipwsss.datasets import build_dataset
from clipwsss.datasets.loaders import size_loader

TINY = {"backbone": "resnet_tiny", "weights": "none", "output_stride": 4, "freeze_stages": 0}


def make_folder(root, sizes=((40, 56), (40, 56), (56, 40), (33, 47))):
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["image,labels"]
    for i, (height, width) in enumerate(sizes):
        pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"i{i}.png")
        lines.append(f"i{i}.png,{'cat;dog' if i == 1 else 'cat'}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("cat: kitty\ndog\n")
    return build_dataset("folder", root, "train")


@pytest.mark.smoke
def test_maps_equal_a_plain_loop_over_scales_and_flips():
    generator = build_generator(["a", "b"], **TINY).eval()
    image = torch.rand(1, 3, 40, 56)
    total = torch.zeros(1, 2, 10, 14)
    for scale in (1.0, 0.5, 1.5):
        size = (round(40 * scale), round(56 * scale))
        scaled = F.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)
        with torch.no_grad():
            maps = F.relu(generator(scaled)) + F.relu(generator(scaled.flip(-1))).flip(-1)
        total += F.interpolate(maps, (10, 14), mode="bilinear")
    expected = total / (total.amax((2, 3), keepdim=True) + 1e-5)
    found = merge_scales(multi_scale_maps(generator, image, (1.0, 0.5, 1.5)), (10, 14))
    assert torch.allclose(found, expected, atol=1e-4)
    pair = torch.cat([image, torch.rand(1, 3, 40, 56)])
    both = merge_scales(multi_scale_maps(generator, pair, (1.0, 0.5, 1.5)), (10, 14))
    assert torch.allclose(both[:1], found, atol=1e-4)


def test_an_all_zero_map_stays_zero():
    assert merge_scales([torch.zeros(1, 2, 5, 7)], (10, 14)).abs().sum() == 0


def test_files_of_mixed_sizes_batched_equal_single(tmp_path):
    dataset = make_folder(tmp_path / "data")
    assert sorted(map(sorted, size_loader(dataset, 8).batch_sampler)) == [[0, 1], [2], [3]]
    generator = build_generator(dataset.classes, **TINY)
    for folder, size in (("batched", 8), ("single", 1)):
        write_cams(generator, size_loader(dataset, size), tmp_path / folder, scales=(1.0, 2.0))
    assert list_cams(tmp_path / "batched") == ["i0", "i1", "i2", "i3"]
    for index, name in enumerate(dataset.names):
        one, other = read_cam(tmp_path / "single", name), read_cam(tmp_path / "batched", name)
        height, width = dataset.sizes[index]
        assert one.cam.shape == (2 if index == 1 else 1, math.ceil(height / 4), math.ceil(width / 4))
        assert one.keys.tolist() == dataset.labels[index].nonzero()[:, 0].tolist()
        assert np.abs(one.cam - other.cam).max() < 2e-3 and 0 <= one.cam.min() and 0.99 < one.cam.max() <= 1


def test_irn_files_carry_high_resolution_maps(tmp_path):
    torch.manual_seed(0)  # some random networks give maps so faint that 1e-5 in their scaling shows
    dataset = make_folder(tmp_path / "data", ((33, 47),))
    generator = build_generator(dataset.classes, **TINY)
    write_cams(generator, size_loader(dataset, 1), tmp_path / "cams", scales=(1.0,), fmt="irn")
    found = read_cam(tmp_path / "cams", "i0")
    assert (tmp_path / "cams" / "i0.npy").exists() and found.high_res.shape == (1, 33, 47)
    assert found.high_res.max() <= 1 and abs(found.high_res.max() - 1) < 1e-3


def test_written_files_stay_when_resuming(tmp_path):
    dataset = make_folder(tmp_path / "data")
    generator = build_generator(dataset.classes, **TINY)
    cams = tmp_path / "cams"
    cams.mkdir()  # an interrupted run can leave it empty
    for name in ("i0.npz", "i2.npz"):
        (cams / name).write_bytes(b"old")
    assert finished_cams(dataset, cams) == {"i0", "i2"}
    write_cams(generator, size_loader(dataset, 1, done=finished_cams(dataset, cams)), cams, scales=(1.0,))
    assert list_cams(cams) == ["i0", "i1", "i2", "i3"] and (cams / "i2.npz").read_bytes() == b"old"
    write_cams(generator, size_loader(dataset, 1), cams, scales=(1.0,))
    assert read_cam(cams, "i2").cam.shape[0] == 1
