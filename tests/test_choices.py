"""POLE's choice of words: the argmax by hand, its table and checkpoint, counts, bad files."""
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clipwsss.errors import InputError
from clipwsss.guidance import choices as choices_module
from clipwsss.guidance.choices import WordChoices, count_choices, own_name_shares, read_choices
from clipwsss.guidance.words import encode_words, load_words
from clipwsss.toy.world import draw_world

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
        text = choices.chosen_text([name], torch.tensor([k]))
        assert torch.equal(again.chosen_text([name], torch.tensor([k])), text)
        assert torch.equal(copy.chosen_text([name], torch.tensor([k])), text)
    with pytest.raises(InputError, match="chosen from other candidates"):
        WordChoices(tiny_clip, "{}", [["boat"], ["train"]]).take_table(table, CLASSES)


def test_a_later_measurement_replaces_an_earlier_one(tiny_clip):
    choices = WordChoices(tiny_clip, "a photo of {}.", CANDIDATES)
    boat = torch.tensor([0])
    for word in (1, 2, 0):
        choices.measure(["x"], boat, choices.text[0, word:word + 1])
        assert torch.equal(choices.chosen_text(["x"], boat)[0], choices.text[0, word])
    choices.share()
    assert torch.equal(choices.chosen_text(["x"], boat)[0], choices.text[0, 0]) and choices.fresh == {}


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


def test_report_has_shares_and_a_picture(tmp_path):
    text = choices_module.report([(TABLE, TRUTH)], tmp_path / "radar.png")
    assert "| boat | 3 | 33 | 33 | 33 |" in text and "| all | 4 | 50 | 25 | 25 |" in text
    assert Image.open(tmp_path / "radar.png").mode == "RGB"
    assert "POLE's release" not in text  # a toy world has its own truth
    assert "| boat | 3 | 33 | 67 | 36.8 |" in choices_module.report([(TABLE, None)], tmp_path / "radar.png")


def test_the_command_reads_a_runs_file(tmp_path, capsys):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(TABLE))
    assert choices_module.main([str(path)]) == 0 and (tmp_path / "own_names.png").exists()
    assert "| car | 1 | 100 | 0 |" in capsys.readouterr().out


def test_truth_of_a_toy_world(tmp_path):
    draw_world(tmp_path / "world", 0, 4, 1)
    truth = choices_module.toy_truth(tmp_path / "world", "train")
    assert list(truth) == [f"train_0000{i}" for i in range(4)] and all(truth.values())


def test_the_released_shares_stand_beside_vocs_classes_alone():
    assert choices_module.released_shares(["dog", "bus"])["dog"] == 80.2
    assert choices_module.released_shares(["dog", "plane"]) == {}


def test_person_apart_from_player(tmp_path):
    """POLE's prompts call the class player; two of three choices here are another word, one of them "person"."""
    words = [entry(word, "player", "person", "human") for word in ("player", "person", "human")]
    line = ('The prompt name of the class person is "player"; the word "person" was chosen for 33.3 % '
            "(POLE's release: 27.1 %).")
    assert line in choices_module.report([({str(i): {"person": word} for i, word in enumerate(words)}, None)],
                                    tmp_path / "radar.png")
    assert choices_module.person_itself([({"x": {"person": entry("person", "person", "human")}}, None)]) == ""
    assert choices_module.person_itself([(TABLE, None)]) == ""
