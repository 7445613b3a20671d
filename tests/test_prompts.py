"""The prompt family: one call, gradients where they belong, selection by hand."""
import pytest
import torch
import torch.nn.functional as F

from clipwsss import clip
from clipwsss.errors import InputError
from clipwsss.guidance.regions import load_clip
from clipwsss.guidance.words import load_words
from clipwsss.guidance.prompts import (FixedPrompt, LearnedPrompt, ReadPrompt, SelectedPrompt, Slot, encode_words,
                                       parse_template, read_learned)

CANDIDATES = [["boat", "ship", "canoe"], ["train"]]


def test_fixed_prompt_is_the_encoded_template(tiny_clip):
    text = encode_words(tiny_clip, "a photo of {}.", ["boat", "potted plant"])
    expected = tiny_clip.encode_text(clip.tokenize(["a photo of boat.", "a photo of potted plant."]))
    assert torch.allclose(text, F.normalize(expected, dim=-1), atol=1e-6)
    prompt = FixedPrompt(text)
    assert torch.equal(prompt(["a", "b"], torch.tensor([1, 0])), text[[1, 0]])
    assert encode_words(tiny_clip, "{}", []).shape == (0, 32)


def test_a_prompt_is_read_as_the_word_nearest_to_it():
    words = ["sea", "sand", "sky"]
    text = F.normalize(torch.tensor([[1., 0., 0.], [0., 1., 0.], [0., .6, .8]]), dim=-1)
    learned = FixedPrompt(F.normalize(torch.tensor([[2., 1., 0.], [0., .1, 1.], [.9, .3, .2], [0., .5, .9]]), dim=-1))
    prompt = ReadPrompt(learned, words, text)
    prompt.make_ready(None, lambda prompt: None)
    assert prompt.read == ["sea", "sky", "sea", "sky"]
    repelled = prompt(["a", "b", "b"], torch.tensor([1, 0, 3]))  # every class repels both words, each once
    assert torch.equal(repelled, text[[0, 2]].expand(3, 2, 3))


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
    prompt = LearnedPrompt(tiny_clip, "[S:a photo of] [C:{}].", ["boat", "potted plant"])
    fixed = encode_words(tiny_clip, "a photo of {}.", ["boat", "potted plant"])
    assert torch.allclose(prompt.features(), fixed, atol=1e-5)
    assert len(prompt.vectors) == 3 + 1 + 2  # shared, boat, potted plant
    prompt(["a"], torch.tensor([1])).sum().backward()
    assert prompt.vectors.grad[3].abs().sum() == 0 and (prompt.vectors.grad[[0, 1, 2, 4, 5]].abs().sum(1) > 0).all()


def test_templates_are_parsed_into_texts_and_slots():
    assert parse_template("a photo of [C*30].") == ["a photo of ", Slot(True, 30, None), "."]
    assert parse_template("[S:a photo of] [C:{}]") == ["", Slot(False, 0, "a photo of"), " ", Slot(True, 0, "{}"), ""]
    with pytest.raises(InputError, match=r"vectors are written"):
        parse_template("a {} [x*3]")


def test_vectors_without_words_are_drawn_as_asked(tiny_clip):
    torch.manual_seed(0)
    normal = LearnedPrompt(tiny_clip, "[C*30]", ["boat"] * 20).vectors
    uniform = LearnedPrompt(tiny_clip, "[C*30]", ["boat"] * 20, start="uniform").vectors
    assert normal.std().item() == pytest.approx(0.02, rel=0.02) and abs(normal.mean()) < 1e-3
    assert 0 <= uniform.min() and uniform.max() <= 1 and uniform.mean().item() == pytest.approx(0.5, rel=0.02)


def test_making_ready_selects_learns_or_leaves(tiny_clip, tmp_path):
    asked = []
    joint = LearnedPrompt(tiny_clip, "[S*2] {}.", ["boat", "train"], joint=True)
    staged = LearnedPrompt(tiny_clip, "[S*2] {}.", ["boat", "train"])
    for prompt in (joint, staged, FixedPrompt(torch.zeros(2, 32))):
        prompt.make_ready(None, asked.append)
    assert asked == [staged] and joint.vectors.requires_grad and not staged.vectors.requires_grad
    assert torch.equal(staged(["a"], torch.tensor([1]))[0], staged.text[1])
    selected, regions = SelectedPrompt(tiny_clip, "{}", CANDIDATES), encode_words(tiny_clip, "{}", ["canoe"])
    selected.make_ready(lambda: [(["x"], torch.tensor([0]), regions)], asked.append)
    assert selected.chosen("x", 0) == 2
    staged.save(tmp_path / "p.pt")
    names, text = read_learned(tmp_path / "p.pt", tiny_clip, 2)
    assert names == ["boat", "train"] and torch.allclose(text, staged.text)
    with pytest.raises(InputError, match="not learned prompts of 3 classes"):
        read_learned(tmp_path / "p.pt", tiny_clip, 3)


def test_bad_templates(tiny_clip):
    with pytest.raises(InputError, match="nothing to learn"):
        LearnedPrompt(tiny_clip, "a photo of {}.", ["boat"])
    with pytest.raises(InputError, match="82 tokens with its start and end, but this CLIP reads 77"):
        LearnedPrompt(tiny_clip, "[C*80]", ["boat"])
    with pytest.raises(InputError, match="template .* this small CLIP knows"):
        LearnedPrompt(load_clip("toy", torch.device("cpu")), "[S*2] zeppelin {}.", ["boat"])
