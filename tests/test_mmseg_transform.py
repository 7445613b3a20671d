"""mmsegmentation's training images: sizes, crops, distortion, padding."""
import numpy as np
import pytest
import torch
from PIL import Image

from clipwsss.datasets import mmseg_transform as module
from clipwsss.datasets.mmseg_transform import distort, draw_crop, mmseg_transform, short_side_size
from clipwsss.segment.predict import class_probabilities


def test_short_sides_by_hand():
    assert short_side_size((375, 500), 512) == (512, 683)
    assert short_side_size((500, 333), 512) == (769, 512)
    assert short_side_size((100, 1000), 512) == (205, 2048)  # the long side is at most four times as long
    assert short_side_size((375, 500), 256) == (256, 341)


@pytest.mark.smoke
def test_mask_follows_the_image_and_padding_is_at_the_right_and_bottom(monkeypatch):
    monkeypatch.setattr(module, "distort", lambda pixels: pixels)
    mask = np.zeros((30, 80), np.uint8)
    mask[:, 30:60] = 7
    image = Image.fromarray(np.repeat((mask[..., None] > 0) * np.uint8(255), 3, 2))
    torch.manual_seed(0)
    for scales in ((0.5, 0.5), (2.0, 2.0), (0.5, 2.0)):
        for _ in range(6):
            pixels, labels = mmseg_transform(48, scales)(image, mask)
            assert pixels.shape == (3, 48, 48) and labels.shape == (48, 48) and pixels.dtype == torch.float32
            inside = labels != 255
            if scales == (0.5, 0.5):  # 24 x 64 pixels: rows are padded, columns are cut
                assert inside[:24].all() and not inside[24:].any()
                assert torch.equal((pixels[:, 30, 5] * 255).round(), torch.tensor([124.0, 116.0, 104.0]))
            differs = (pixels[0] > 0.5) != (labels == 7)
            assert (differs & inside).float().mean() < 0.05, "only pixels at the edge may differ"


def test_crops_avoid_one_label_and_the_eleventh_is_taken_anyway(monkeypatch):
    labels = torch.zeros(20, 400, dtype=torch.uint8)
    labels[:, 200:] = 3
    torch.manual_seed(0)
    shares = []
    for _ in range(20):
        rows, columns = draw_crop(labels, 100)
        crop = labels[rows, columns]
        assert crop.shape == (20, 100)
        shares.append(max((crop == 0).float().mean(), (crop == 3).float().mean()))
    assert np.mean([share < 0.75 for share in shares]) > 0.5  # a third of the crops has both in these shares
    rows, columns = draw_crop(torch.zeros(8, 9, dtype=torch.uint8), 4)
    assert rows.stop - rows.start == columns.stop - columns.start == 4
    places = iter(range(100))  # of y and x in turn
    monkeypatch.setattr(module.torch, "randint", lambda *_: torch.tensor(next(places)))
    rows, columns = draw_crop(torch.zeros(90, 90, dtype=torch.uint8), 4)
    assert (rows.start, columns.start) == (20, 21)  # mmsegmentation looks at ten crops and takes the eleventh


def test_distortion_changes_what_it_says(monkeypatch):
    pixels = np.random.default_rng(0).integers(60, 180, (9, 11, 3), np.uint8)
    chances = {"none": [False] * 5, "brightness": [False, True, False, False, False],
               "contrast first": [True, False, True, False, False], "contrast last": [False, False, False, False, True],
               "hue": [False, False, False, True, False], "saturation": [False, False, True, False, False]}
    results = {}
    for name, answers in chances.items():
        left = iter(answers)
        monkeypatch.setattr(module, "_by_chance", lambda: next(left))
        monkeypatch.setattr(module, "_between", lambda low, high: high)
        results[name] = distort(pixels).astype(int)
    assert (results["none"] == pixels).all()
    assert (results["brightness"] == pixels + 32).all()
    assert (results["contrast first"] == np.clip(pixels * 1.5, 0, 255).astype(int)).all()
    assert (results["contrast last"] == results["contrast first"]).all()
    # hue and saturation keep the largest channel of a pixel, up to the rounding of 8-bit HSV
    for name in ("hue", "saturation"):
        assert np.abs(results[name].max(2) - pixels.max(2)).max() <= 1
        assert np.abs(results[name] - pixels).max() > 5
    spread = pixels.max(2).astype(int) - pixels.min(2)
    more = results["saturation"].max(2) - results["saturation"].min(2)
    assert np.abs(more - 1.5 * spread)[1.5 * spread < pixels.max(2)].max() <= 4


def test_distortions_stay_in_range_and_are_random():
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 14, 3), np.uint8)
    results = [distort(pixels) for _ in range(12)]
    assert all(result.dtype == np.uint8 and result.shape == pixels.shape for result in results)
    assert len({result.tobytes() for result in results}) > 6


def test_prediction_resizes_to_the_short_side_and_back():
    seen = []

    def network(images):
        seen.append(tuple(images.shape[-2:]))
        return torch.cat([images[:, :1], 1 - images[:, :1]], 1)

    images = torch.zeros(1, 3, 30, 40)
    images[..., 20:] = 1.0
    shares = class_probabilities(network, images, short_side=48)
    assert seen == [(48, 64)] and shares.shape == (1, 2, 30, 40)
    assert torch.equal(shares.argmax(1)[0, :, :19], torch.ones(30, 19, dtype=torch.int64))
    assert not shares.argmax(1)[0, :, 21:].any()
