"""Masked regions through CLIP against plain loops."""
import pytest
import torch
import torch.nn.functional as F

from clipwsss.cams.cam_files import write_cam
from clipwsss.datasets import Batch
from clipwsss.errors import InputError
from clipwsss.guidance.regions import cam_file_regions, encode_regions


def batch(size=(24, 40)):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *size, generator=generator)
    probabilities = torch.rand(2, 4, 6, 10, generator=generator)
    labels = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]])
    return images, probabilities, labels.nonzero(as_tuple=True)


def test_regions_equal_a_plain_loop_on_non_square_images(tiny_clip):
    images, probabilities, pairs = batch()
    foreground, background = encode_regions(tiny_clip, images, pairs[0], probabilities[pairs])
    for row, (i, k) in enumerate(zip(*[index.tolist() for index in pairs])):
        small = F.interpolate(images[i:i + 1], (16, 16), mode="bilinear", antialias=True)
        mask = F.interpolate(probabilities[i:i + 1, k:k + 1], (16, 16), mode="bilinear")
        mean = tiny_clip.pixel_mean
        for weight, found in ((mask, foreground), (1 - mask, background)):
            colour = mean + weight * (small - mean)  # masked pixels take the mean colour
            expected = F.normalize(tiny_clip.encode_image(colour), dim=-1)[0]
            assert torch.allclose(found[row], expected, atol=1e-5)
    alone, nothing = encode_regions(tiny_clip, images, pairs[0], probabilities[pairs], with_background=False)
    assert nothing is None and torch.allclose(alone, foreground, atol=1e-6)


def test_the_releases_view_by_hand(tiny_clip):
    """CLIMS' training: the network's normalised input and its P, both enlarged with aligned corners."""
    images, probabilities, pairs = batch()
    found = encode_regions(tiny_clip, images, pairs[0], probabilities[pairs], view="release")

    def at_corners(plane):
        """Row y of 16 lies at y (H - 1) / 15 of H rows, and so for columns: two neighbours are mixed."""
        for axis in (0, 1):
            plane = plane.movedim(axis, 0)
            place = torch.arange(16) * (len(plane) - 1) / 15
            low = place.floor().long().clamp(max=len(plane) - 2)
            part = (place - low)[:, None]
            plane = ((1 - part) * plane[low] + part * plane[low + 1]).movedim(0, axis)
        return plane

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for row, (i, k) in enumerate(zip(*[index.tolist() for index in pairs])):
        seen = torch.stack([at_corners((images[i, c] - mean[c]) / std[c]) for c in range(3)])
        p = at_corners(probabilities[i, k])
        for region, features in ((seen * p, found[0]), (seen * (1 - p), found[1])):
            expected = F.normalize(tiny_clip.encode_image(region[None], normalised=True), dim=-1)[0]
            assert torch.allclose(features[row], expected, atol=1e-5)
    plain, _ = encode_regions(tiny_clip, images, pairs[0], probabilities[pairs])
    assert (plain - found[0]).abs().max() > 1e-3


def test_gradients_reach_the_maps_and_not_clip(tiny_clip):
    images, probabilities, pairs = batch()
    probabilities.requires_grad_()
    foreground, background = encode_regions(tiny_clip, images, pairs[0], probabilities[pairs])
    (foreground.sum() + background[:, 0].sum()).backward()
    present = torch.zeros(2, 4, dtype=torch.bool)
    present[pairs] = True
    assert (probabilities.grad.abs().sum((2, 3)) > 0).equal(present)
    assert all(p.grad is None for p in tiny_clip.parameters())


def test_regions_of_cam_files_are_those_of_their_maps(tiny_clip, tmp_path):
    images, probabilities, pairs = batch((24, 40))
    labels = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]])
    data = Batch(["a", "b"], images, labels.float(), None)
    for index, name in enumerate(data.names):
        keys = labels[index].nonzero()[:, 0]
        write_cam(tmp_path, name, keys, probabilities[index, keys])
    found = cam_file_regions(tiny_clip, tmp_path, data, "cpu")
    assert found.names == ["a", "a", "b"] and found.classes.tolist() == [0, 3, 1]
    maps = F.interpolate(probabilities.half().float(), (24, 40), mode="bilinear", align_corners=False)
    foreground, background = encode_regions(tiny_clip, images, pairs[0], maps[pairs])
    assert torch.allclose(found.present, maps[pairs], atol=1e-6)
    assert torch.allclose(found.foreground, foreground, atol=1e-5)
    assert torch.allclose(found.background, background, atol=1e-5)
    square = F.interpolate(images, (40, 40), mode="bilinear")
    with pytest.raises(InputError, match="do not fit an image of"):
        cam_file_regions(tiny_clip, tmp_path, data._replace(images=square), "cpu")
    resized = cam_file_regions(tiny_clip, tmp_path, data._replace(images=square), "cpu", resized=True)
    assert resized.present.shape == (3, 40, 40)
