"""Background thresholds that need no true masks: Otsu's method over all images."""
import json

import numpy as np
import pytest
import torch
from test_make_pseudo import draw_world, masks_in, report_of, run

from clipwsss.cams.cam_files import read_cam, resize_cam, write_cam
from clipwsss.datasets import build_dataset
from clipwsss.report import thresholds
from clipwsss.report.thresholds import OTSU_BINS, otsu_threshold


def test_otsu_by_hand():
    assert otsu_threshold(np.array([5, 5, 0, 0, 0, 0, 0, 5, 5, 0])) == 0.5  # 0.2 to 0.7 part them equally well
    # 8 values 0.05, 2 of 0.35 and 2 of 0.95: the first apart give 8 * 4 * (0.65 - 0.05)^2 = 11.5, the last apart
    # 10 * 2 * (0.95 - 0.11)^2 = 14.1, at any cut from 0.4 to 0.9.
    assert otsu_threshold(np.array([8, 0, 0, 2, 0, 0, 0, 0, 0, 2])) == 0.7
    assert otsu_threshold(np.array([0, 0, 9, 0])) == 0.5  # one value: nothing to part


def test_otsu_is_the_cut_of_least_variance_within_the_groups():
    values = np.concatenate([np.random.default_rng(0).beta(1, 8, 900), np.random.default_rng(1).beta(6, 3, 300)])
    within = {}
    for cut in np.arange(1, OTSU_BINS) / OTSU_BINS:
        groups = (values[values < cut], values[values >= cut])
        within[cut] = sum(len(group) * group.var() for group in groups if len(group))
    counts = np.histogram(values, OTSU_BINS, (0, 1))[0]
    assert otsu_threshold(counts) == pytest.approx(min(within, key=within.get), abs=0.011)


def test_masks_by_otsus_threshold_need_no_true_masks(tmp_path):
    world = draw_world(tmp_path / "data", masks=False)
    out = tmp_path / "out"
    assert run(*world, "--refine", "none", "--threshold", "otsu", "--out", out) == 0
    refined, unrefined = json.loads((out / "thresholds.json").read_text())
    assert refined == unrefined  # nothing is refined
    threshold = refined["threshold"]
    pooled = []
    for name, mask in masks_in(out).items():
        cam = read_cam(tmp_path / "data/cams", name)
        strongest = resize_cam(cam, mask.shape).max(axis=0)
        assert ((mask > 0) == (strongest > threshold)).all()
        pooled.append(strongest.ravel())
    assert threshold == otsu_threshold(np.histogram(np.concatenate(pooled), OTSU_BINS, (0, 1))[0])

    two = tmp_path / "two"
    assert run(*world, "--refine", "none", "--threshold", "otsu", "--workers", 2, "--out", two) == 0
    assert (two / "thresholds.json").read_text() == (out / "thresholds.json").read_text()
    auto = tmp_path / "auto"
    assert run(*world, "--refine", "none", "--threshold", "auto", "--out", auto) == 0
    for name, mask in masks_in(out).items():
        assert (masks_in(auto)[name] == mask).all()
    assert run(*world, "--refine", "none", "--threshold", "auto", "--out", auto) == 0  # goes on by the kept file
    # A run that goes on keeps the threshold that its other masks have.
    (out / "thresholds.json").write_text('[{"threshold": 0.9}, {"threshold": 0.9}]')
    (out / "masks/im0.png").unlink()
    assert run(*world, "--refine", "none", "--threshold", "otsu", "--out", out) == 0
    assert 0 < (masks_in(out)["im0"] > 0).sum() < (masks_in(auto)["im0"] > 0).sum()


def test_the_walk_has_a_threshold_of_its_own(tmp_path):
    world = draw_world(tmp_path / "data")
    out = tmp_path / "out"
    assert run(*world, "--refine", "color", "--threshold", "otsu", "--out", out) == 0
    refined, unrefined = json.loads((out / "thresholds.json").read_text())
    assert refined != unrefined
    assert report_of(out)["miou"] > 80


def test_otsu_looks_at_images_all_over_the_data_set(tmp_path, monkeypatch):
    world = draw_world(tmp_path / "data", count=7, masks=False)
    monkeypatch.setattr(thresholds, "OTSU_IMAGES", 3)
    seen = []
    count = thresholds.image_histograms

    def counted(dataset, cams, walk_image, index):
        seen.append(index)
        return count(dataset, cams, walk_image, index)

    monkeypatch.setattr(thresholds, "image_histograms", counted)
    assert run(*world, "--refine", "none", "--threshold", "otsu", "--out", tmp_path / "out") == 0
    assert seen == [0, 3, 6]


def test_values_above_1_count_as_1(tmp_path):
    """A CAM file's rounding may reach 1.01; the part of an object that has such values is not left out."""
    draw_world(tmp_path, count=1, masks=False)
    data = build_dataset("folder", tmp_path, "train")
    cam = np.zeros((1, 11, 16), np.float32)
    cam[:, :, 8:] = 1.005
    cam[:, :4, 8:] = 0.3
    write_cam(tmp_path / "cams", "im0", np.array([0]), cam)
    counts, _ = thresholds.image_histograms(data, tmp_path / "cams", lambda pixels, file: torch.from_numpy(cam), 0)
    assert counts[-1] == 7 * 8 and counts.sum() == cam.size
