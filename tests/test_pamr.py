"""PAMR against a plain loop over pixels, neighbours and dilations."""
import pytest
import torch

from clipwsss.refine.pamr import neighbours, pamr, pixel_affinity

STEPS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


def at(maps, y, x):
    height, width = maps.shape[-2:]
    return maps[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]


@pytest.mark.parametrize("size", [(7, 11), (5, 3)])
def test_equals_a_plain_loop(size):
    generator = torch.Generator().manual_seed(0)
    image, scores = torch.rand(3, *size, generator=generator), torch.rand(2, *size, generator=generator)
    dilations, expected = (1, 3), scores.clone()
    for _ in range(2):
        following = torch.zeros_like(expected)
        for y in range(size[0]):
            for x in range(size[1]):
                window = torch.stack([at(image, y + d * dy, x + d * dx) for d in dilations for dy, dx in STEPS])
                spread = window.std(0)
                places = [(y + d * dy, x + d * dx) for d in dilations for dy, dx in STEPS if (dy, dx) != (0, 0)]
                unlike = [((image[:, y, x] - at(image, *place)).abs() / (1e-8 + 0.1 * spread)).mean()
                          for place in places]
                weights = torch.softmax(-torch.stack(unlike), 0)
                following[:, y, x] = sum(w * at(expected, *place) for w, place in zip(weights, places))
        expected = following
    assert torch.allclose(pamr(image, scores, 2, dilations), expected, atol=1e-5)


def test_weights_sum_to_one_and_labels_follow_the_edges_of_the_image():
    image = torch.zeros(3, 20, 30)
    image[:, 6:14, 8:22] = 1
    image += 0.02 * torch.rand(image.shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(pixel_affinity(image).sum(0), torch.ones(20, 30), atol=1e-5)
    assert [part.shape for part in neighbours(image)] == [(3, 20, 30)] * 48
    truth = (image[0] > 0.5).float()
    flipped = torch.rand(20, 30, generator=torch.Generator().manual_seed(2)) < 0.2
    seeds = torch.where(flipped, 1 - truth, truth)
    refined = pamr(image, torch.stack([1 - seeds, seeds])).argmax(0)
    assert (refined == truth).float().mean() > (seeds == truth).float().mean() + 0.05
