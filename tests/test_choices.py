"""POLE's choice of words: the argmax by hand, its table and checkpoint, counts, bad files."""
import json

import pytest
import torch
import torch.nn.functional as F

from clipwsss.errors import InputError
from clipwsss.guidance.choices import WordChoices, count_choices, own_name_shares, read_choices
from clipwsss.guidance.words import encode_words, load_words

CANDIDATES = [["boat", "ship", "canoe"], ["train"]]
CLASSES = ["boat", "train"]


def measured(tiny_clip):
    """Choices of two images, and the regions that they are of."""
    choices = WordChoices(tiny_clip, "a photo of {}.", CANDIDATES)
    regions = F.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    choices.measure(["x", "x", "y"], torch.tensor([0, 1, 0]), regions)
    return choices, regions


@pytest.mark.smoke
def test_the_choice_is_the_argmax_by_hand(tiny_clip):
    choices, regions = measured(tiny_clip)
    for row, (name, k) in enumerate((("x", 0), ("x", 1), ("y", 0))):
        cosines = encode_words(tiny_clip, "a photo of {}.", CANDIDATES[k]) @ regions[row]
        best = int(cosines.argmax())
        assert choices.chosen(name, k) == best
        assert torch.equal(choices.chosen_text([name], torch.tensor([k]))[0], choices.text[k, best])
    with pytest.raises(InputError, match="image z: no word was chosen for class 'boat'"):
        choices.chosen_text(["z"], torch.tensor([0]))


def test_a_table_and_a_checkpoint_give_the_choices_back(tiny_clip):
    choices, _ = measured(tiny_clip)
    table = choices.table(CLASSES)
    assert list(table["x"]) == CLASSES and set(table["y"]["boat"]["similarity"]) == set(CANDIDATES[0])
    again = WordChoices(tiny_clip, "a photo of {}.", CANDIDATES)
    again.take_table(table, CLASSES)
    copy = WordChoices(tiny_clip, "a photo of {}.", CANDIDATES)
    copy.load_state_dict(choices.state_dict())
    for name, k in (("x", 0), ("x", 1), ("y", 0)):
        assert again.chosen(name, k) == copy.chosen(name, k) == choices.chosen(name, k)
    with pytest.raises(InputError, match="chosen from other candidates"):
        WordChoices(tiny_clip, "{}", [["boat"], ["train"]]).take_table(table, CLASSES)


def test_a_later_measurement_replaces_an_earlier_one(tiny_clip):
    choices = WordChoices(tiny_clip, "a photo of {}.", CANDIDATES)
    boat = torch.tensor([0])
    for word in (1, 2, 0):
        choices.measure(["x"], boat, choices.text[0, word:word + 1])
        assert choices.chosen("x", 0) == word
    choices.share()
    assert choices.chosen("x", 0) == 0 and choices.fresh == {}


def test_candidates_of_a_file_reach_the_text(tiny_clip, tmp_path):
    path = tmp_path / "s.json"
    path.write_text('{"cat": ["zebra"]}')
    choices = WordChoices(tiny_clip, "{}", load_words("folder", ["cat"], None, path).candidates)
    zebra = encode_words(tiny_clip, "{}", ["zebra"])
    choices.measure(["i"], torch.tensor([0]), zebra)
    assert torch.allclose(choices.chosen_text(["i"], torch.tensor([0])), zebra, atol=1e-5)


def entry(word, *candidates):
    return {"word": word, "similarity": {candidate: 0.5 for candidate in candidates}}


TABLE = {"x": {"boat": entry("ship", "boat", "ship"), "car": entry("car", "car", "van")},
         "y": {"boat": entry("boat", "boat", "ship")}, "z": {"boat": entry("ship", "boat", "ship")}}
TRUTH = {"x": {"boat": ["ship", "canoe"], "car": ["van"]}, "y": {"boat": ["ship"]}, "z": {"boat": ["canoe"]}}


def test_counts_by_hand():
    assert count_choices([(TABLE, None)]) == {"boat": {"other": 2, "own": 1}, "car": {"own": 1}}
    assert count_choices([(TABLE, TRUTH)]) == {"boat": {"true": 1, "own": 1, "other": 1}, "car": {"own": 1}}
    assert count_choices([(TABLE, None), (TABLE, None)])["boat"] == {"other": 4, "own": 2}
    assert own_name_shares(TABLE, ["car", "boat", "dog"]) == "car 100%, boat 33%"


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(TABLE))
    assert read_choices(path) == TABLE
    for text in ("[]", "{}", "not json", '{"x": {"boat": 3}}', '{"x": {"boat": {"word": "ship"}}}'):
        path.write_text(text)
        with pytest.raises(InputError, match="prompts.json"):
            read_choices(path)
