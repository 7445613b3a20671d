"""Masked regions through CLIP, adapters and the weighted terms, against plain references."""
import pytest
import torch
import torch.nn.functional as F

from clipwsss.guidance.adapters import Adapter
from clipwsss.guidance.regions import encode_regions
from clipwsss.guidance.losses import guidance_terms
from clipwsss.guidance.losses import attract, repel, similarity, suppress

WEIGHTS = {"fg": 2.0, "bg": 3.0, "suppress": 0.5, "area": 0.1}


def batch(size=(24, 40)):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *size, generator=generator)
    probabilities = torch.rand(2, 4, 6, 10, generator=generator)
    labels = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]])
    return images, probabilities, labels.nonzero(as_tuple=True)


def test_regions_equal_a_plain_loop_on_non_square_images(tiny_clip):
    images, probabilities, pairs = batch()
    foreground, background = encode_regions(tiny_clip, images, probabilities, pairs)
    for row, (i, k) in enumerate(zip(*[index.tolist() for index in pairs])):
        small = F.interpolate(images[i:i + 1], (16, 16), mode="bilinear", antialias=True)
        mask = F.interpolate(probabilities[i:i + 1, k:k + 1], (16, 16), mode="bilinear")
        mean = tiny_clip.pixel_mean
        for weight, found in ((mask, foreground), (1 - mask, background)):
            colour = mean + weight * (small - mean)  # masked pixels take the mean colour
            expected = F.normalize(tiny_clip.encode_image(colour), dim=-1)[0]
            assert torch.allclose(found[row], expected, atol=1e-5)
    alone, nothing = encode_regions(tiny_clip, images, probabilities, pairs, with_background=False)
    assert nothing is None and torch.allclose(alone, foreground, atol=1e-6)


def test_gradients_reach_the_maps_and_not_clip(tiny_clip):
    images, probabilities, pairs = batch()
    probabilities.requires_grad_()
    foreground, background = encode_regions(tiny_clip, images, probabilities, pairs)
    (foreground.sum() + background[:, 0].sum()).backward()
    present = torch.zeros(2, 4, dtype=torch.bool)
    present[pairs] = True
    assert (probabilities.grad.abs().sum((2, 3)) > 0).equal(present)
    assert all(p.grad is None for p in tiny_clip.parameters())


def test_a_batch_without_tags_gives_zero_terms(tiny_clip):
    images, probabilities, _ = batch()
    pairs = torch.zeros(2, 4).nonzero(as_tuple=True)
    probabilities.requires_grad_()
    foreground, background = encode_regions(tiny_clip, images, probabilities, pairs)
    assert foreground.shape == background.shape == (0, 32)
    terms = guidance_terms(foreground, background, foreground, torch.empty(0, 5, 32), probabilities,
                           (Adapter(32, "none"),) * 2, WEIGHTS, 0.2, "sum")
    assert terms["fg"] == terms["bg"] == terms["suppress"] == 0
    terms["loss"].backward()
    assert torch.isfinite(probabilities.grad).all()


def test_adapter_by_hand():
    features = torch.randn(3, 8)
    for kind in ("fixed", "learnable"):
        adapter = Adapter(8, kind)
        bottleneck = F.relu(features @ adapter.down.weight.T) @ adapter.up.weight.T
        assert adapter.down.weight.shape == (2, 8)
        assert torch.allclose(adapter(features), 0.2 * bottleneck + 0.8 * features, atol=1e-6)
    assert {name for name, _ in Adapter(8, "fixed").named_parameters()} == {"down.weight", "up.weight"}
    assert Adapter(8, "learnable").ratio.requires_grad and Adapter(8, "learnable").ratio.shape == (8,)
    assert Adapter(8, "none")(features) is features and not list(Adapter(8, "none").parameters())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_terms_are_weighted_sum_of_the_losses(reduction):
    unit = [F.normalize(torch.rand(5, 16), dim=-1) for _ in range(3)]
    foreground, background, text = unit
    suppressed = F.normalize(torch.rand(5, 7, 16), dim=-1)
    area = torch.rand(5, 9)
    terms = guidance_terms(foreground, background, text, suppressed, area, (Adapter(16, "none"),) * 2, WEIGHTS, 0.3,
                           reduction)
    expected = (2 * attract(similarity(foreground, text)) + 3 * repel(similarity(background, text))
                + 0.5 * suppress(similarity(foreground, suppressed), 0.3, reduction) + 0.1 * area.mean())
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
