"""Predictions: multi-scale probabilities against a plain loop, the CRF's decision, files of many images."""
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_segmenter import built

from clipwsss.datasets.base import Entry, TagDataset
from clipwsss.datasets.loaders import size_loader
from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette
from clipwsss.segment.photos import Photos
from clipwsss.segment.predict import (CRF_KERNELS, class_probabilities, decide, enlarge, labels_at, predict_images,
                                      reduced_images, reduced_size, write_label_maps)


@pytest.fixture
def network() -> torch.nn.Module:
    return built()[0].eval()


@pytest.mark.smoke
def test_probabilities_are_the_mean_over_scales_and_mirrors(network):
    images = torch.rand(2, 3, 25, 38)
    plain = []
    for height, width in ((12, 19), (25, 38), (38, 57)):
        scaled = F.interpolate(images, (height, width), mode="bilinear")
        for mirrored in (False, True):
            logits = network(scaled.flip(-1) if mirrored else scaled)
            share = F.interpolate(logits, (25, 38), mode="bilinear").softmax(1)
            plain.append(share.flip(-1) if mirrored else share)
    result = class_probabilities(network, images, (0.5, 1.0, 1.5), flip=True)
    assert result.shape == (2, 3, 25, 38)
    assert torch.allclose(result, torch.stack(plain).mean(0), atol=1e-5)
    assert torch.allclose(result.sum(1), torch.ones(2, 25, 38), atol=1e-5)
    assert torch.allclose(class_probabilities(network, images[:1]), class_probabilities(network, images)[:1], atol=1e-5)


def test_the_maximum_of_logits_as_deeplabv2_is_tested(network):
    """deeplab-pytorch's MSC by hand: copies at 0.75 and 0.5, their logits at the first's size, the largest."""
    images = torch.rand(2, 3, 25, 38)

    def by_hand(view):
        first = network(view)
        others = [F.interpolate(network(F.interpolate(view, scale_factor=scale, mode="bilinear")),
                                first.shape[-2:], mode="bilinear") for scale in (0.75, 0.5)]
        largest = torch.maximum(first, torch.maximum(*others))
        return F.interpolate(largest, (25, 38), mode="bilinear").softmax(1)

    plain = by_hand(images)
    mirrored = by_hand(images.flip(-1)).flip(-1)
    for flip, expected in ((False, plain), (True, (plain + mirrored) / 2)):
        result = class_probabilities(network, images, (1.0, 0.75, 0.5), flip, "max")
        assert torch.allclose(result, expected, atol=1e-5)
        assert not torch.allclose(result, class_probabilities(network, images, (1.0, 0.75, 0.5), flip), atol=1e-3)


def test_the_smallest_images_have_a_pixel_at_every_scale(network):
    for size in ((1, 5), (2, 1), (3, 3)):
        for fusion in ("mean", "max"):
            result = class_probabilities(network, torch.rand(1, 3, *size), (1.0, 0.75, 0.1), True, fusion)
            assert result.shape == (1, 3, *size) and torch.allclose(result.sum(1), torch.ones(1, *size))


def test_crf_removes_specks_and_keeps_edges_of_the_image():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 200
    truth = np.zeros((40, 60), int)
    truth[:, 30:] = 2
    noisy = truth.copy()
    noisy[10, 10], noisy[20, 45] = 2, 0
    scores = np.full((4, 40, 60), 1e-4, np.float32)
    np.put_along_axis(scores, noisy[None], 0.8, 0)
    scores[[0, 2]] += 0.1
    assert np.array_equal(decide(image, scores / scores.sum(0)), noisy)
    assert np.array_equal(decide(image, scores / scores.sum(0), CRF_KERNELS), truth)
    alone = np.zeros((3, 4, 5), np.float32)
    alone[1] = 1
    assert (decide(image[:4, :5], alone, CRF_KERNELS) == 1).all()


def test_labels_at_a_larger_size_are_those_of_enlarged_probabilities():
    rng = np.random.default_rng(0)
    for size, larger in (((5, 7), (5, 7)), ((5, 7), (23, 31)), ((4, 9), (5, 40))):
        maps = rng.random((4, *size), np.float32)
        maps[2] = 0
        assert np.array_equal(labels_at(maps, larger), enlarge(maps, larger).argmax(0))
        plain = F.interpolate(torch.from_numpy(maps)[None], larger, mode="bilinear")[0].numpy()
        assert np.allclose(enlarge(maps, larger), plain, atol=1e-6)


def test_images_are_reduced_to_a_longest_side(photos):
    for size, side, expected in (((300, 400), 200, (150, 200)), ((300, 400), 400, (300, 400)), ((9, 900), 30, (1, 30)),
                                 ((300, 400), None, (300, 400)), ((300, 400), 0, (300, 400))):
        assert reduced_size(size, side) == expected
    data = reduced_images(Photos({path.stem: path for path in photos}), 16)
    assert data.sizes == [(16, 13), (12, 16), (16, 13), (12, 16), (16, 13)]
    assert [tuple(data[index].image.shape[1:]) for index in range(5)] == data.sizes
    with Image.open(photos[1]) as file:
        small = np.asarray(file.resize((16, 12), Image.Resampling.BILINEAR))
    assert np.array_equal((data[1].image * 255).round().byte().permute(1, 2, 0).numpy(), small)


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    """Five images of two sizes."""
    rng, paths = np.random.default_rng(0), [tmp_path / "photos" / f"photo{number}.png" for number in range(5)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        pixels = rng.integers(0, 255, (24, 32 if number % 2 else 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def test_files_of_a_data_set_are_what_decide_says(network, photos, tmp_path):
    data = TagDataset([Entry(path.stem, path, None, None, "here") for path in photos], [], ())
    for kernels in (None, CRF_KERNELS, ((4, 3), (83, 5, 3))):
        folder = tmp_path / f"crf_{kernels}"
        loader = size_loader(data, 2, 2, done={"photo3"})
        predictions = predict_images(network, loader, (1.0, 1.5), True, "mean", "fp32")
        write_label_maps(predictions, folder, voc_palette(), kernels, threads=2)
        written = sorted(path.stem for path in folder.iterdir())
        assert written == ["photo0", "photo1", "photo2", "photo4"]
        for index in (0, 1, 2, 4):
            scores = class_probabilities(network, data[index].image[None], (1.0, 1.5), flip=True)[0].numpy()
            expected = decide(np.asarray(data.load_image(index)), scores, kernels)
            labels = np.array(Image.open(folder / f"photo{index}.png"))
            assert (labels == expected).mean() > 0.99  # sums of a batch of two may differ in the last bit


def test_own_files_get_overlays_and_bad_ones_are_reported(network, photos, tmp_path):
    photos[2].write_bytes(b"nothing")
    with pytest.raises(InputError, match="photo2.png: not a readable image"):
        Photos({path.stem: path for path in photos})
    good = Photos({path.stem: path for path in photos}, skip_bad=True)
    predictions = predict_images(network, size_loader(good, 1), (1.0,), False, "mean", "fp32")
    write_label_maps(predictions, tmp_path / "out", voc_palette(), overlay_names=("background", "cat", "dog"))
    predictions = predict_images(network, size_loader(reduced_images(good, 16), 1), (1.0,), False, "mean", "fp32")
    write_label_maps(predictions, tmp_path / "small", voc_palette(), None, 1, ("background", "cat", "dog"),
                     dict(zip(good.names, good.sizes)), probabilities=True)
    for name, size in zip(good.names, good.sizes):
        stored = np.load(tmp_path / "small" / f"{name}.npz")
        labels = np.array(Image.open(tmp_path / "small" / f"{name}.png"))
        assert labels.shape == size == tuple(stored["size"]) and stored["probabilities"].dtype == np.float16
        assert stored["probabilities"].shape == (3, *reduced_size(size, 16))
        assert (labels_at(stored["probabilities"].astype(np.float32), size) == labels).mean() > 0.98
        assert Image.open(tmp_path / "small" / f"{name}_overlay.png").width == reduced_size(size, 16)[1]
    assert len(good) == 4 and len(good.skipped) == 1 and "photo2.png" in good.skipped[0]
    assert len(list((tmp_path / "out").glob("photo?.png"))) == 4
    assert len(list((tmp_path / "out").glob("photo?_overlay.png"))) == 4
