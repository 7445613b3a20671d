"""Transforms: image and mask move together, sizes are the papers', all chance is torch's."""
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from clipwsss.datasets.base import whole_image
from clipwsss.datasets.transforms import train_transform

MEAN = torch.tensor([0.485, 0.456, 0.406])


def striped(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """An image whose red channel is its mask's value, different in each pixel column and row block of 8."""
    mask = ((np.arange(height)[:, None] // 8 * 7 + np.arange(width)[None] // 8 * 3) % 120).astype(np.uint8)
    return Image.fromarray(np.stack([mask, 255 - mask, mask // 2], axis=2)), mask


@pytest.mark.smoke
def test_whole_images_equal_torchvisions_conversion():
    every_value = Image.fromarray(np.arange(256 * 3, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3))
    image, mask = striped(11, 17)
    for picture in (every_value, image):
        tensor, none = whole_image(picture)
        assert none is None and tensor.dtype == torch.float32 and tensor.is_contiguous()
        assert torch.equal(tensor, functional.to_dtype(functional.pil_to_tensor(picture), torch.float32, scale=True))
        assert torch.equal(tensor, train_transform(None, resize_long=None, flip=False)(picture, None)[0])
    label = whole_image(image, mask)[1]
    assert label.dtype == torch.int64 and torch.equal(label, torch.from_numpy(mask).long())


@pytest.mark.smoke
def test_mask_follows_image_exactly():
    image, mask = striped(40, 64)
    for options in ({"resize_long": None}, {"resize_long": None, "scales": (1.0, 1.0)}):
        torch.manual_seed(0)
        flipped = 0
        for _ in range(20):
            tensor, label = train_transform(48, **options)(image, mask)
            assert tensor.shape == (3, 48, 48) and label.shape == (48, 48)
            inside = label != 255
            assert inside.sum() == 40 * 48, "all rows are kept, 48 of 64 columns"
            assert torch.equal((tensor[0] * 255).round().long()[inside], label[inside])
            row = label[inside.any(1)][0]
            flipped += bool((row.diff() == -3).any())
        assert 0 < flipped < 20, options


def test_mask_follows_image_when_resized():
    height, width = 90, 150
    mask = np.zeros((height, width), np.uint8)
    mask[20:50, 30:100] = 5
    image = Image.fromarray(np.repeat((mask[..., None] > 0) * np.uint8(255), 3, 2))
    torch.manual_seed(1)
    for options in ({"resize_long": (80, 300)}, {"resize_long": None, "scales": (0.5, 1.5)}):
        for _ in range(10):
            tensor, label = train_transform(400, **options)(image, mask)
            inside = label != 255
            agree = ((tensor[0] > 0.5) == (label == 5))[inside].float().mean()
            assert agree > 0.97 and set(label.unique().tolist()) == {0, 5, 255}


def test_two_scales_are_a_range_and_more_are_drawn_from():
    """deeplab-pytorch draws one of five; IRN and Mask2Former anything between two."""
    image = Image.new("RGB", (100, 60))
    torch.manual_seed(0)
    widths = {scales: {train_transform(None, resize_long=None, scales=scales)(image, None)[0].shape[2]
                       for _ in range(60)} for scales in ((0.5, 1.5), (0.5, 0.75, 1.0, 1.25, 1.5), (0.75,))}
    between, five, one = widths.values()
    assert len(between) > 20 and min(between) >= 50 and max(between) <= 150
    assert five == {50, 75, 100, 125, 150} and one == {75}


def test_long_side_is_drawn_from_both_ends():
    image, mask = striped(30, 60)
    transform = train_transform(None, resize_long=(20, 23))
    torch.manual_seed(0)
    sizes = {tuple(transform(image, mask)[0].shape[1:]) for _ in range(60)}
    assert sizes == {(10, 20), (10, 21), (11, 22), (12, 23)}  # halves round to even, as numpy's round in IRN
    image = image.transpose(Image.Transpose.ROTATE_90)
    tall = {tuple(transform(image, None)[0].shape[1:]) for _ in range(60)}
    assert tall == {(width, height) for height, width in sizes}


def test_bicubic_with_antialiasing_equals_pillow():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    own, _ = train_transform(None, resize_long=(45, 45), flip=False)(image, None)
    pillow = np.asarray(image.resize((45, 30), Image.Resampling.BICUBIC), np.float32) / 255
    assert (own - torch.from_numpy(pillow).permute(2, 0, 1)).abs().max() <= 1.01 / 255


def test_masks_are_resized_by_pixel_centres_as_pillow_does():
    """IRN and deeplab-pytorch resize training labels with Pillow's NEAREST. Odd sides: no centre lies between two pixels."""
    rng = np.random.default_rng(0)
    for size, factor in (((37, 51), 0.5), ((37, 51), 1.5), ((41, 65), 0.75), ((31, 21), 1.25), ((31, 53), 0.61)):
        mask = rng.integers(0, 21, size, dtype=np.uint8)
        _, found = train_transform(None, None, (factor, factor), flip=False)(Image.new("RGB", size[::-1]), mask)
        small = [round(side * factor) for side in size]
        assert np.array_equal(found, np.asarray(Image.fromarray(mask).resize(small[::-1], Image.NEAREST))), (size, factor)


def test_small_image_lands_anywhere_on_the_mean_colour():
    image, mask = Image.new("RGB", (2, 3), (255, 0, 0)), np.ones((3, 2), np.uint8)
    transform = train_transform(4, resize_long=None)
    torch.manual_seed(0)
    corners = set()
    for _ in range(200):
        tensor, label = transform(image, mask)
        outside = label == 255
        assert outside.sum() == 10 and (tensor[:, outside].T - MEAN).abs().max() < 0.5 / 255 + 1e-6
        corners.add(tuple((label == 1).nonzero()[0].tolist()))
    assert corners == {(top, left) for top in range(2) for left in range(3)}


def test_brightness_stays_in_range_and_is_off_by_default():
    image, _ = striped(16, 16)
    torch.manual_seed(0)
    plain = train_transform(16, resize_long=None, flip=False)
    bright = train_transform(16, resize_long=None, flip=False, brightness=0.2)
    before = plain(image, None)[0]
    assert torch.equal(before, whole_image(image, None)[0])
    means = []
    for _ in range(50):
        after = bright(image, None)[0]
        assert 0 <= after.min() and after.max() <= 1
        assert (after - before).abs().max() <= 0.2 + 0.05 + 1e-6
        means.append(float(after.mean() - before.mean()))
    assert min(means) < -0.02 and max(means) > 0.02


def test_torch_seed_decides_everything():
    image, mask = striped(50, 70)
    transform = train_transform(32, scales=(0.5, 1.5), resize_long=None, brightness=0.1)
    transform = pickle.loads(pickle.dumps(transform))
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        np.random.seed(len(results))
        results.append(transform(image, mask))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


def test_two_sizes_at_once_are_refused():
    with pytest.raises(ValueError, match="resize_long or scales"):
        train_transform(32, resize_long=(1, 2), scales=(0.5, 1.5))


def test_segmenters_see_images_as_deeplab_pytorch_resizes_and_pads_them():
    """Bilinear without antialiasing, 13 x 17 times 0.75 rounded down to 9 x 12, padding at the end of a side."""
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    mask = np.arange(13 * 17, dtype=np.uint8).reshape(13, 17)
    transform = train_transform(11, None, (0.75, 0.75), flip=False, deeplab=True)
    plain = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    expected = torch.nn.functional.interpolate(plain, (9, 12), mode="bilinear", align_corners=False)[0]
    labels = torch.from_numpy(np.array(Image.fromarray(mask).resize((12, 9), Image.Resampling.NEAREST))).long()
    offsets = set()
    for _ in range(12):
        image, found = transform(Image.fromarray(pixels), mask)
        x = int((labels[0, :2] == found[0, 0]).nonzero()[0])
        offsets.add(x)
        assert torch.allclose(image[:, :9], expected[..., x:x + 11], atol=1.01 / 255)
        assert torch.equal(found[:9], labels[:, x:x + 11]) and (found[9:] == 255).all()
        assert torch.allclose(image[:, 9:], torch.tensor([124, 116, 104]).view(3, 1, 1) / 255)
    assert offsets == {0, 1}
