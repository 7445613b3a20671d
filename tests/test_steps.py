"""The steps of guided training against plain sums of the losses."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipwsss.cams.base import MapGenerator
from clipwsss.datasets import Batch
from clipwsss.guidance.adapters import Adapter
from clipwsss.guidance.losses import Suppression, Weights, area, attract, repel, similarity, suppress
from clipwsss.guidance.prompts import FixedPrompt, LearnedPrompt
from clipwsss.guidance.regions import encode_regions
from clipwsss.guidance.steps import (Guide, LearnBackgroundStep, LearnClassStep, PromptWeights, TuneStep)

WEIGHTS = Weights(2.0, 3.0, 0.5, 0.1)


@pytest.fixture
def guide(tiny_clip):
    torch.manual_seed(0)
    class Convolution(MapGenerator, nn.Conv2d):
        """The least that a generator can be."""

    return Guide(Convolution(3, 4, 3, stride=4, padding=1), tiny_clip)


def batch(labels):
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    return Batch(["a", "b"], images, torch.tensor(labels).float(), None)


def unit(*shape):
    return F.normalize(torch.rand(*shape, generator=torch.Generator().manual_seed(len(shape))), dim=-1)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("area_of", ["all", "present"])
def test_tuning_is_the_weighted_sum_of_the_losses(guide, reduction, area_of):
    data, text, repelled = batch([[1, 0, 0, 1], [0, 1, 0, 0]]), unit(4, 32), unit(4, 7, 32)
    adapters = (Adapter(32, "fixed"), Adapter(32, "learnable"))
    step = TuneStep(guide, FixedPrompt(text), FixedPrompt(repelled), adapters, WEIGHTS,
                    Suppression(0.3, reduction), area_of)
    terms = step(data)
    pairs = data.labels.nonzero(as_tuple=True)
    maps = torch.sigmoid(guide.generator(data.images))
    foreground, background = encode_regions(guide.clip, data.images, pairs[0], maps[pairs])
    names = adapters[1](text[pairs[1]])
    expected = {"fg": attract(similarity(adapters[0](foreground), names)),
                "bg": repel(similarity(adapters[0](background), names)),
                "suppress": suppress(similarity(foreground, repelled[pairs[1]]), 0.3, reduction),
                "area": area(maps if area_of == "all" else maps[pairs])}
    assert all(terms[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6)
               for name, value in expected.items())
    total = 2 * expected["fg"] + 3 * expected["bg"] + 0.5 * expected["suppress"] + 0.1 * expected["area"]
    assert list(terms)[0] == "loss" and terms["loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_a_batch_without_tags_gives_zero_terms(guide):
    step = TuneStep(guide, FixedPrompt(unit(4, 32)), FixedPrompt(torch.empty(4, 0, 32)), (nn.Identity(),) * 2,
                    WEIGHTS)
    terms = step(batch([[0, 0, 0, 0], [0, 0, 0, 0]]))
    assert terms["fg"] == terms["bg"] == terms["suppress"] == 0
    terms["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in guide.generator.parameters())


def test_learning_reaches_the_prompt_alone(guide):
    data = batch([[1, 0, 0, 1], [0, 1, 0, 0]])
    prompt = LearnedPrompt(guide.clip, "[C*3]", ["a", "b", "c", "d"])
    class_text = F.normalize(prompt.features().detach() + 0.1 * unit(4, 32), dim=-1)  # alike: no cosine is clamped
    pairs = data.labels.nonzero(as_tuple=True)
    maps = torch.sigmoid(guide.generator(data.images))
    foreground, background = encode_regions(guide.clip, data.images, pairs[0], maps[pairs])
    text = prompt.features()
    learned = LearnClassStep(guide, prompt, WEIGHTS)(data)
    expected = 2 * attract(similarity(foreground, text[pairs[1]])) + 3 * repel(similarity(background, text[pairs[1]]))
    assert learned["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    repelling = LearnBackgroundStep(guide, prompt, class_text, PromptWeights(0.7, 0.2))(data)
    expected = (0.7 * attract(similarity(background, text[pairs[1]]))
                + 0.2 * repel(similarity(class_text[pairs[1]], text[pairs[1]])))
    assert repelling["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    (learned["loss"] + repelling["loss"]).backward()
    assert prompt.vectors.grad[:6].abs().sum() > 0 and prompt.vectors.grad[6:9].abs().sum() == 0
    assert all(p.grad is None for p in guide.generator.parameters())
