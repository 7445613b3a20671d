"""Learned prompts: the template language, where gradients go, random starts, files."""
import copy

import pytest
import torch

from clipwsss.errors import InputError
from clipwsss.guidance.prompts import LearnedPrompt, TemplatePart, parse_template, read_learned, save_learned
from clipwsss.guidance.regions import load_clip
from clipwsss.guidance.words import encode_words


def test_templates_are_parsed_into_texts_and_slots():
    assert parse_template("a photo of [C*30].") == [
        TemplatePart("words", "a photo of "), TemplatePart("own", None, 30), TemplatePart("words", ".")]
    assert parse_template("[S:a photo of] [C:{}]") == [
        TemplatePart("words", ""), TemplatePart("shared", "a photo of"), TemplatePart("words", " "),
        TemplatePart("own", "{}"), TemplatePart("words", "")]
    with pytest.raises(InputError, match=r"vectors are written"):
        parse_template("a {} [x*3]")


@pytest.mark.smoke
def test_learned_prompts_get_all_gradients_and_nothing_else_does(tiny_clip):
    for template, rows in (("[S*16] {}.", 16), ("a photo of [C*1].", 2), ("[S*4] [C*1]", 6), ("[C*30]", 60)):
        prompt = LearnedPrompt(tiny_clip, template, ["boat", "potted plant"])
        assert prompt.vectors.shape == (rows, 64), template
        assert list(dict(prompt.named_parameters())) == ["vectors"]
        prompt(tiny_clip).sum().backward()
        assert (prompt.vectors.grad.abs().sum(1) > 0).all(), template
    assert all(p.grad is None for p in tiny_clip.parameters())


def test_class_vectors_are_each_classs_own(tiny_clip):
    prompt = LearnedPrompt(tiny_clip, "[C*2] {}.", ["boat", "train"])
    prompt(tiny_clip)[1].sum().backward()
    assert prompt.vectors.grad[:2].abs().sum() == 0 and (prompt.vectors.grad[2:].abs().sum(1) > 0).all()


def test_a_prompt_that_starts_from_words_equals_the_words(tiny_clip):
    prompt = LearnedPrompt(tiny_clip, "[S:a photo of] [C:{}].", ["boat", "potted plant"])
    fixed = encode_words(tiny_clip, "a photo of {}.", ["boat", "potted plant"])
    assert torch.allclose(prompt(tiny_clip), fixed, atol=1e-5)
    assert len(prompt.vectors) == 3 + 1 + 2  # shared, boat, potted plant
    prompt(tiny_clip)[1].sum().backward()
    assert prompt.vectors.grad[3].abs().sum() == 0 and (prompt.vectors.grad[[0, 1, 2, 4, 5]].abs().sum(1) > 0).all()


def test_positions_of_words_and_vectors_by_hand(tiny_clip):
    prompt = LearnedPrompt(tiny_clip, "[S*2] {}.", ["boat", "potted plant"])
    assert prompt.slots.tolist() == [[-1, 0, 1, -1, -1, -1, -1], [-1, 0, 1, -1, -1, -1, -1]]
    assert prompt.ends.tolist() == [5, 6]  # start, 2 vectors, name, full stop, end


def test_vectors_without_words_are_drawn_as_asked(tiny_clip):
    torch.manual_seed(0)
    normal = LearnedPrompt(tiny_clip, "[C*30]", ["boat"] * 20).vectors
    uniform = LearnedPrompt(tiny_clip, "[C*30]", ["boat"] * 20, start="uniform").vectors
    assert normal.std().item() == pytest.approx(0.02, rel=0.02) and abs(normal.mean()) < 1e-3
    assert 0 <= uniform.min() and uniform.max() <= 1 and uniform.mean().item() == pytest.approx(0.5, rel=0.02)


def test_files_keep_names_and_text(tiny_clip, tmp_path):
    prompt = LearnedPrompt(tiny_clip, "[S*2] {}.", ["boat", "train"])
    save_learned(prompt, tiny_clip, tmp_path / "p.pt")
    names, text = read_learned(tmp_path / "p.pt", tiny_clip, 2)
    assert names == ["boat", "train"] and torch.allclose(text, prompt(tiny_clip))
    with pytest.raises(InputError, match="learned prompts of 2 classes; this data has 3"):
        read_learned(tmp_path / "p.pt", tiny_clip, 3)
    with pytest.raises(InputError, match="for a CLIP of 32 dimensions; this CLIP has 128"):
        read_learned(tmp_path / "p.pt", load_clip("toy", torch.device("cpu")))
    other = copy.deepcopy(tiny_clip)  # as ViT-B/16 beside ViT-B/32: the same width, other features
    other.text_projection += 0.1
    with pytest.raises(InputError, match="p.pt: its prompts were learned for another CLIP; give the --clip of that run"):
        read_learned(tmp_path / "p.pt", other)


def test_bad_templates(tiny_clip):
    with pytest.raises(InputError, match="nothing to learn"):
        LearnedPrompt(tiny_clip, "a photo of {}.", ["boat"])
    with pytest.raises(InputError, match="it reads alike for all classes"):
        LearnedPrompt(tiny_clip, "[S*3]", ["boat", "car"])
    with pytest.raises(InputError, match="82 tokens with the start and end tokens, but this CLIP reads at most 77"):
        LearnedPrompt(tiny_clip, "[C*80]", ["boat"])
    with pytest.raises(InputError, match="template .* this small CLIP knows"):
        LearnedPrompt(load_clip("toy", torch.device("cpu")), "[S*2] zeppelin {}.", ["boat"])
