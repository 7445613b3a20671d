"""Losses by hand-computed values, objectives against plain formulas, adapters; the module alone in a folder."""
import math
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipwsss.cams.maps import MapGenerator
from clipwsss.datasets import Batch
from clipwsss.guidance import losses
from clipwsss.guidance.losses import Adapter, background_prompt_loss, class_prompt_loss, guided_loss
from clipwsss.guidance.prompts import LearnedPrompt
from clipwsss.guidance.regions import encode_regions, generator_regions
from clipwsss.training import joined_loss

WEIGHTS = {"fg": 2.0, "bg": 3.0, "suppress": 0.5, "area": 0.1}
LABELS = [[1, 0, 0, 1], [0, 1, 0, 0]]


class Convolution(MapGenerator, nn.Conv2d):
    """The least that a generator can be."""


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return Convolution(3, 4, 3, stride=4, padding=1)


def batch(labels=LABELS):
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    return Batch(["a", "b"], images, torch.tensor(labels).float(), None)


def unit(*shape):
    return F.normalize(torch.rand(*shape, generator=torch.Generator().manual_seed(len(shape))), dim=-1)


def cosine(image, text):
    image = F.normalize(image, dim=-1)
    text = F.normalize(text, dim=-1)
    return (image * text).sum(-1).clamp(1e-4, 1 - 1e-4)


@pytest.mark.smoke
def test_guidance_is_the_weighted_sum_of_its_terms(generator, tiny_clip):
    data = batch()
    text = unit(4, 32)
    repelled = unit(4, 7, 32)
    adapters = nn.ModuleList([Adapter(32, "fixed"), Adapter(32, "learnable")])
    image_index, classes = data.labels.nonzero(as_tuple=True)
    maps = torch.sigmoid(generator(data.images))
    present = maps[image_index, classes]
    foreground, background = encode_regions(tiny_clip, data.images, image_index, present)
    names = adapters[1](text[classes])
    every = cosine(foreground[:, None], repelled[classes])
    suppressed = -((1 - every).log() * (every > 0.3)).sum()
    regions = generator_regions(generator, tiny_clip, data, "sigmoid")
    for reduction, pairs in (("sum", 1), ("mean", 3)):
        for area_over, covered in (("all", maps), ("present", present)):
            terms = joined_loss(guided_loss(regions, text[regions.classes], repelled[regions.classes], adapters,
                                            WEIGHTS, 0.3, reduction, area_over))
            expected = {"fg": -cosine(adapters[0](foreground), names).log().mean(),
                        "bg": -(1 - cosine(adapters[0](background), names)).log().mean(),
                        "suppress": suppressed / pairs, "area": covered.mean()}
            for name, value in expected.items():
                assert terms[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), (name, reduction)
            total = 2 * expected["fg"] + 3 * expected["bg"] + 0.5 * expected["suppress"] + 0.1 * expected["area"]
            assert list(terms)[0] == "loss" and terms["loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_a_batch_without_tags_gives_zero_terms(generator, tiny_clip):
    regions = generator_regions(generator, tiny_clip, batch([[0, 0, 0, 0], [0, 0, 0, 0]]), "sigmoid")
    nothing = torch.empty(4, 0, 32)
    terms = joined_loss(guided_loss(regions, unit(4, 32)[regions.classes], nothing[regions.classes],
                                    nn.ModuleList([nn.Identity(), nn.Identity()]), WEIGHTS, 0.0, "mean", "all"))
    assert terms["fg"] == terms["bg"] == terms["suppress"] == 0
    terms["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters())


def test_learning_reaches_the_prompt_alone(generator, tiny_clip):
    prompt = LearnedPrompt(tiny_clip, "[C*3]", ["a", "b", "c", "d"])
    with torch.no_grad():
        regions = generator_regions(generator, tiny_clip, batch(), "sigmoid")
        class_text = F.normalize(prompt(tiny_clip) + 0.1 * unit(4, 32), dim=-1)  # alike: no cosine is clamped
    text = prompt(tiny_clip)
    own = text[regions.classes]
    learned = joined_loss(class_prompt_loss(regions, text, WEIGHTS))["loss"]
    expected = (-2 * cosine(regions.foreground, own).log().mean()
                - 3 * (1 - cosine(regions.background, own)).log().mean())
    assert learned.item() == pytest.approx(expected.item(), rel=1e-5)
    to_class = cosine(class_text[regions.classes], own)
    for repulsion, term in (("paper", -(1 - to_class).log().mean()), ("release", to_class.log().mean())):
        loss = joined_loss(background_prompt_loss(regions, text, class_text, 0.7, 0.2, repulsion))["loss"]
        expected = -0.7 * cosine(regions.background, own).log().mean() + 0.2 * term
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5), repulsion
    (learned + loss).backward()
    assert prompt.vectors.grad[:6].abs().sum() > 0 and prompt.vectors.grad[6:9].abs().sum() == 0
    assert all(p.grad is None for p in generator.parameters())


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


def test_similarity_is_the_clamped_cosine():
    image = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    text = torch.tensor([[4.0, 3.0], [-1.0, 0.0], [2.0, 0.0]])
    assert losses.similarity(image, text).tolist() == pytest.approx([0.96, 1e-4, 1 - 1e-4])
    many = losses.similarity(image, torch.stack([text, image], 1))
    assert many.shape == (3, 2) and many[:, 0].tolist() == pytest.approx([0.96, 1e-4, 1 - 1e-4])
    with torch.autocast("cpu", torch.bfloat16):
        low = losses.similarity(image.bfloat16(), text.bfloat16())
    assert low.dtype == torch.float32 and low.tolist() == pytest.approx([0.96, 1e-4, 1 - 1e-4])


@pytest.mark.smoke
def test_values_by_hand():
    s = torch.tensor([0.5, 0.25])
    assert losses.attract(s).tolist() == pytest.approx([math.log(2), math.log(4)])
    assert losses.repel(s).tolist() == pytest.approx([math.log(2), math.log(4 / 3)])
    table = torch.tensor([[0.5, 0.1], [0.3, 0.2]])
    assert losses.suppress(table, 0.26).flatten().tolist() == pytest.approx([math.log(2), 0, math.log(1 / 0.7), 0])
    assert losses.suppress(table, 0.9).sum() == 0
    for empty in (torch.empty(0), torch.empty(3, 0), torch.empty(0, 5)):
        assert losses.attract(empty).sum() == losses.repel(empty).sum() == losses.suppress(empty, 0.2).sum() == 0


def test_lifts_out_alone(tmp_path):
    shutil.copy(losses.__file__, tmp_path)
    code = "import sys; sys.path.insert(0, '.'); import losses; assert 'clipwsss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
