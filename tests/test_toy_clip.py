"""The toy CLIP: truth and loss by hand, a few steps of training, and what the shipped weights know."""
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipwsss import clip
from clipwsss.errors import InputError, run_script
from clipwsss.files import load_weights
from clipwsss.guidance.regions import load_clip
from clipwsss.guidance.words import encode_words
from clipwsss.toy import __main__ as command
from clipwsss.toy import clip as toy_clip
from clipwsss.toy.clip import MAYBE, NO, WORDS, YES
from clipwsss.toy.scenes import ALL_SUBTYPES, BACKGROUNDS, CLASSES, SUBTYPES


def scene_of(subtype: str, background: str) -> toy_clip.SceneBatch:
    """One scene: a square of 400 pixels on one background."""
    instances = torch.zeros(1, 64, 64, dtype=torch.uint8)
    instances[0, 20:40, 20:40] = 1
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    return toy_clip.SceneBatch(images, instances, torch.zeros_like(instances),
                           torch.tensor([[ALL_SUBTYPES.index(subtype), -1]]),
                           torch.tensor([[BACKGROUNDS.index(background), -1]]))


def truth_of(scenes: toy_clip.SceneBatch, masks: torch.Tensor, **rates: float) -> dict[str, int]:
    row = toy_clip.word_truth(scenes, masks, torch.Generator().manual_seed(0), **rates)[0]
    return {word: int(value) for word, value in zip(WORDS, row) if value != NO}


def test_truth_of_whole_hidden_and_half_visible_scenes():
    ship, whole = scene_of("ship", "water"), torch.ones(1, 1, 64, 64)
    rates = {"class_rate": 0.0, "company_rate": 0.0}
    assert truth_of(ship, whole, **rates) == {"boat": YES, "ship": YES, "water": YES}
    assert truth_of(ship, whole * 0, **rates) == {"nothing": YES}
    half = whole.clone()
    half[..., 32:] = 0  # 12 of the object's 20 columns stay
    assert truth_of(ship, half * 0.6, **rates) == {"boat": MAYBE, "ship": MAYBE, "water": YES}
    only = (ship.instances[:, None] == 1).float()
    assert truth_of(ship, only, **rates) == {"boat": YES, "ship": YES}
    assert truth_of(ship, 1 - only, **rates) == {"water": YES}


def test_class_words_fit_prototypes_and_company_calls_classes():
    canoe, whole = scene_of("canoe", "grass"), torch.ones(1, 1, 64, 64)
    plain = {"canoe": YES, "grass": YES}
    assert truth_of(canoe, whole, class_rate=0.0, company_rate=0.0) == plain
    assert truth_of(canoe, whole, class_rate=1.0, company_rate=0.0) == {"boat": YES} | plain
    assert truth_of(canoe, whole, class_rate=0.0, company_rate=1.0) == {"sheep": YES} | plain


def test_loss_by_hand():
    cosines = torch.tensor([[0.5, 0.1, 0.3], [0.2, -0.1, 0.4]])
    truth = torch.tensor([[YES, NO, MAYBE], [NO, NO, YES]])
    s = toy_clip.LOGIT_SCALE
    pictures = [math.log1p(math.exp(s * (0.1 - 0.5))), math.log1p(math.exp(s * -0.2) + math.exp(s * -0.5))]
    words = [math.log1p(math.exp(s * (0.2 - 0.5))), 0.0]  # the third word has no picture it does not fit
    floor = 4 * s * (0.02 + 0.1) ** 2 / 6
    expected = (np.mean(pictures) + np.mean(words)) / 2 + floor
    assert toy_clip.contrastive_loss(cosines, truth).item() == pytest.approx(expected, abs=1e-5)


def test_masks_are_varied_and_within_range():
    scenes = toy_clip.draw_scenes(48, 0, "clip_val")
    masks = toy_clip.random_masks(scenes, torch.Generator().manual_seed(0))
    assert masks.shape == (48, 1, 64, 64) and 0 <= masks.min() and masks.max() <= 1
    whole = (masks == 1).flatten(1).all(1).float().mean()
    assert 0.2 < whole < 0.55
    assert torch.equal(masks, toy_clip.random_masks(scenes, torch.Generator().manual_seed(0)))


def test_a_few_steps_make_the_loss_fall_and_a_seed_repeats():
    before = torch.get_rng_state()
    model, losses = toy_clip.train_clip(steps=24, n_scenes=200, batch_size=32)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    assert not model.training and model.logit_scale.exp().item() == pytest.approx(toy_clip.LOGIT_SCALE)
    first, second = (toy_clip.train_clip(steps=2, seed=7, n_scenes=16, batch_size=8)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_command_saves_a_loadable_clip(tmp_path, monkeypatch, capsys):
    train = partial(toy_clip.train_clip, n_scenes=64, batch_size=16)
    draw_all = toy_clip.draw_scenes
    for place in (toy_clip, command):
        monkeypatch.setattr(place, "draw_scenes", lambda count, *source: draw_all(min(count, 64), *source))
    monkeypatch.setattr(command, "train_clip", train)
    path = tmp_path / "clip.pt"
    assert run_script(partial(command.main, ["--train-clip", "--steps", "2", "--out", str(path)])) == 0
    assert "zero-shot accuracy on 1000 held-out scenes: class" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["clip.pt"]
    assert load_clip(str(path), "cpu").input_resolution == toy_clip.TOY_CLIP_SIZE
    assert run_script(partial(command.main, ["--train-clip", "--steps", "0", "--out", str(path)])) == 2


@pytest.fixture(scope="module")
def shipped() -> clip.CLIP:
    return toy_clip.load_toy_clip()


@pytest.mark.smoke
def test_toy_clip_is_chosen_by_name_or_file(shipped):
    """A plain CLIP must not load the file: it would take its few rows for CLIP's first tokens."""
    for name in ("toy", str(toy_clip.CLIP_WEIGHTS)):
        loaded = load_clip(name, torch.device("cpu"))
        assert type(loaded) is toy_clip.ToyCLIP and loaded.transformer.resblocks[0].attn.heads == 2, name
        assert all(map(torch.equal, loaded.state_dict().values(), shipped.state_dict().values())), name
        assert not loaded.training, name
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.parameters()), name
    state = load_weights(toy_clip.CLIP_WEIGHTS)["state_dict"]
    with pytest.raises(RuntimeError, match='Unexpected key.* "token_ids"'):
        clip.CLIP.from_state_dict(state)


def test_other_files_keep_their_own_errors(tmp_path):
    with pytest.raises(InputError, match="none.pt is neither a file nor a published CLIP"):
        load_clip(str(tmp_path / "none.pt"), torch.device("cpu"))
    (tmp_path / "torn.pt").write_bytes(toy_clip.CLIP_WEIGHTS.read_bytes()[:5000])
    with pytest.raises(InputError, match="torn.pt: not a readable checkpoint of tensors"):
        load_clip(str(tmp_path / "torn.pt"), torch.device("cpu"))
    with pytest.raises(InputError, match="none.pt: no such checkpoint"):
        toy_clip.load_toy_clip(tmp_path / "none.pt")


def test_plain_weights_of_any_clip_load(tiny_clip, tmp_path):
    torch.save(tiny_clip.state_dict(), tmp_path / "plain.pt")
    assert type(load_clip(str(tmp_path / "plain.pt"), "cpu", model="quickgelu")) is clip.CLIP


def test_shipped_weights_are_small_and_know_the_world(shipped):
    assert toy_clip.CLIP_WEIGHTS.stat().st_size < 2e6
    assert not shipped.training and shipped.context_length == 16
    right = toy_clip.zero_shot(shipped, toy_clip.draw_scenes(300, 1, "clip_val"))
    assert right["class"] > 0.86 and right["subtype"] > 0.78 and right["background"] > 0.97


@torch.no_grad()
def test_class_words_are_nearest_to_their_own_subtypes(shipped):
    text = encode_words(shipped, "a photo of {}.", WORDS)
    near = text[toy_clip.CLASS] @ text[toy_clip.SUBTYPE].T
    own = torch.tensor([[word in SUBTYPES[name] for word in ALL_SUBTYPES] for name in CLASSES])
    for row, mine in zip(near, own):
        assert row[mine].mean() > row[~mine].mean() + 0.1


@torch.no_grad()
def test_words_mean_the_same_in_every_template(shipped):
    plain = encode_words(shipped, "a photo of {}.", WORDS)
    for template in toy_clip.TOY_TEMPLATES:
        other = encode_words(shipped, template, WORDS)
        assert ((other @ plain.T).argmax(1) == torch.arange(len(WORDS))).all()
        assert F.cosine_similarity(other, plain).mean() > 0.9


def test_texts_use_clips_own_tokens(shipped):
    with pytest.raises(ValueError, match="zebra"):
        shipped.encode_text(clip.tokenize("a photo of a zebra."))
    a, b = shipped.encode_text(clip.tokenize(["a photo of boat.", "a photo of boat."], context_length=16))
    assert torch.equal(a, b)


@torch.no_grad()
def test_small_vocabulary_equals_the_rows_of_a_whole_one():
    texts = ["a photo of a boat.", "a ship"]
    tokens = clip.tokenize(texts)
    token_ids = tokens[tokens > 0].unique()
    torch.manual_seed(0)
    small = toy_clip.ToyCLIP(token_ids.tolist()).eval()
    sizes = clip.Architecture(128, 64, (1, 1, 1, 1), 12, None, 16, 49408, 64, 2, 2)
    whole = clip.CLIP(sizes).eval()
    whole.token_embedding.weight[token_ids] = small.token_embedding.weight
    state = whole.state_dict()
    state.update((name, value) for name, value in small.state_dict().items()
                 if name not in ("token_embedding.weight", "token_ids"))
    whole.load_state_dict(state)
    torch.testing.assert_close(small.encode_text(tokens), whole.encode_text(tokens), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(small.embed_tokens(tokens)[:, :4], whole.embed_tokens(tokens)[:, :4])
    with pytest.raises(ValueError, match=f"knows {len(token_ids)} tokens, and not 'zebra' .token 22548.$"):
        small.encode_text(clip.tokenize(["a boat", "a zebra"]))
    with pytest.raises(ValueError, match=r"not '!' .token 0."):  # id 0 is padding only behind the end
        small.encode_text(clip.tokenize("a !~ boat"))
    with pytest.raises(ValueError, match=r"text of 17 tokens, this CLIP takes 16"):
        small.encode_text(clip.tokenize("boat " * 15))
