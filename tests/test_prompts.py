"""Words, and the prompt family: one call, gradients where they belong, selection by hand."""
import json

import pytest
import torch
import torch.nn.functional as F

from clipwsss import clip
from clipwsss.errors import InputError
from clipwsss.guidance.regions import load_clip
from clipwsss.guidance.words import ASSETS, load_words
from clipwsss.guidance.prompts import FixedPrompt, LearnedPrompt, SelectedPrompt, encode_words

CANDIDATES = [["boat", "ship", "canoe"], ["train"]]


def test_voc_and_coco_words():
    voc = load_words("voc12", ["person", "pottedplant", "cat"])
    assert voc.names == ["player", "potted plant", "cat"]
    assert voc.candidates[0] == ["player", "people", "person", "human"]
    assert voc.candidates[2][1:] == ["feline", "tomcat", "kitty"]
    assert voc.background[:3] == ["tree", "river", "sea"] and len(voc.background) == 10
    names = list(json.loads((ASSETS / "prompts_coco14.json").read_text())["names"])
    coco = load_words("coco14", names)
    assert len(names) == 80 < len(coco.background) and all(3 <= len(row) <= 5 for row in coco.candidates)


def test_own_data_words(tmp_path):
    words = load_words("folder", ["lake", "cat"], synonyms={"cat": ["kitty", "cat", "moggy"]})
    assert words.candidates == [["lake"], ["cat", "kitty", "moggy"]] and "lake" not in words.background
    path = tmp_path / "s.json"
    path.write_text('{"cat": ["tabby", "tom", "puss"]}')
    assert load_words("folder", ["lake", "cat"], None, path, 2).candidates[1] == ["cat", "tabby", "tom"]
    path.write_text('{"dog": ["hound"]}')
    with pytest.raises(InputError, match="unknown class 'dog'; the classes are lake, cat"):
        load_words("folder", ["lake", "cat"], None, path)
    path.write_text('{"cat": "tabby"}')
    with pytest.raises(InputError, match="expected an object of lists"):
        load_words("folder", ["lake", "cat"], None, path)


def test_fixed_prompt_is_the_encoded_template(tiny_clip):
    text = encode_words(tiny_clip, "a photo of {}.", ["boat", "potted plant"])
    expected = tiny_clip.encode_text(clip.tokenize(["a photo of boat.", "a photo of potted plant."]))
    assert torch.allclose(text, F.normalize(expected, dim=-1), atol=1e-6)
    prompt = FixedPrompt(text)
    assert torch.equal(prompt(["a", "b"], torch.tensor([1, 0])), text[[1, 0]])
    assert encode_words(tiny_clip, "{}", []).shape == (0, 32)


def test_selection_is_the_argmax_by_hand(tiny_clip):
    prompt = SelectedPrompt(tiny_clip, "a photo of {}.", CANDIDATES)
    regions = F.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    names, classes = ["x", "x", "y"], torch.tensor([0, 1, 0])
    prompt.select(names, classes, regions)
    for row, (name, k) in enumerate(zip(names, classes.tolist())):
        cosines = encode_words(tiny_clip, "a photo of {}.", CANDIDATES[k]) @ regions[row]
        assert prompt.chosen(name, k) == int(cosines.argmax())
        assert torch.equal(prompt([name], torch.tensor([k]))[0], prompt.text[k, int(cosines.argmax())])
    report = prompt.report(["boat", "train"])
    assert list(report["x"]) == ["boat", "train"]
    assert set(report["y"]["boat"]["similarity"]) == set(CANDIDATES[0])
    with pytest.raises(InputError, match="image z: no word was selected for class 'boat'"):
        prompt(["z"], torch.tensor([0]))
    again = SelectedPrompt(tiny_clip, "a photo of {}.", CANDIDATES)
    again.load_report(report, ["boat", "train"])
    assert all(again.chosen(n, k) == prompt.chosen(n, k) for n, k in zip(names, classes.tolist()))
    with pytest.raises(InputError, match="selected from other candidates"):
        SelectedPrompt(tiny_clip, "{}", [["boat"], ["train"]]).load_report(report, ["boat", "train"])


def test_reselection_follows_regions_only_in_its_epochs(tiny_clip):
    prompt = SelectedPrompt(tiny_clip, "a photo of {}.", CANDIDATES, reselect_every=2)
    classes = torch.tensor([0])
    prompt.select(["x"], classes, prompt.text[0, 1:2])
    for epoch, seen, expected in ((0, 2, 2), (1, 1, 2), (2, 1, 1), (3, 2, 1)):
        prompt.start_epoch(epoch)
        prompt(["x"], classes, prompt.text[0, seen:seen + 1])
        assert prompt.chosen("x", 0) == expected
    copy = SelectedPrompt(tiny_clip, "a photo of {}.", CANDIDATES)
    copy.load_state_dict(prompt.state_dict())
    assert copy.chosen("x", 0) == 1


def test_candidates_of_a_file_reach_the_text(tiny_clip, tmp_path):
    path = tmp_path / "s.json"
    path.write_text('{"cat": ["zebra"]}')
    prompt = SelectedPrompt(tiny_clip, "{}", load_words("folder", ["cat"], None, path).candidates)
    zebra = encode_words(tiny_clip, "{}", ["zebra"])
    prompt.select(["i"], torch.tensor([0]), zebra)
    assert torch.allclose(prompt(["i"], torch.tensor([0])), zebra, atol=1e-5)


@pytest.mark.parametrize("template,rows", [("[S*16] {}.", 16), ("a photo of [C*1].", 2), ("[S*4] [C*1]", 6),
                                           ("[C*30]", 60)])
def test_learned_prompts_get_all_gradients_and_nothing_else_does(tiny_clip, template, rows):
    prompt = LearnedPrompt(tiny_clip, template, ["boat", "potted plant"])
    assert prompt.vectors.shape == (rows, 64) and list(dict(prompt.named_parameters())) == ["vectors"]
    prompt(["a", "b"], torch.tensor([0, 1])).sum().backward()
    assert (prompt.vectors.grad.abs().sum(1) > 0).all()
    assert all(p.grad is None for p in tiny_clip.parameters())


def test_class_vectors_are_each_classs_own(tiny_clip):
    prompt = LearnedPrompt(tiny_clip, "[C*2] {}.", ["boat", "train"])
    prompt(["a"], torch.tensor([1])).sum().backward()
    assert prompt.vectors.grad[:2].abs().sum() == 0 and (prompt.vectors.grad[2:].abs().sum(1) > 0).all()


def test_a_prompt_that_starts_from_words_equals_the_words(tiny_clip):
    prompt = LearnedPrompt(tiny_clip, "[S*3] {}.", ["boat", "potted plant"], init="a photo of")
    fixed = encode_words(tiny_clip, "a photo of {}.", ["boat", "potted plant"])
    assert torch.allclose(prompt.features(), fixed, atol=1e-5)


def test_bad_templates(tiny_clip):
    with pytest.raises(InputError, match="nothing to learn"):
        LearnedPrompt(tiny_clip, "a photo of {}.", ["boat"])
    with pytest.raises(InputError, match="82 tokens with its start and end, but this CLIP reads 77"):
        LearnedPrompt(tiny_clip, "[C*80]", ["boat"])
    with pytest.raises(InputError, match="template .* this small CLIP knows"):
        LearnedPrompt(load_clip("toy", torch.device("cpu")), "[S*2] zeppelin {}.", ["boat"])
