"""The report on chosen words: shares, pictures, the released shares."""
import json

from PIL import Image

from clipwsss.guidance import choices as selection
from clipwsss.toy.world import draw_world


def entry(word, *candidates):
    return {"word": word, "similarity": {candidate: 0.5 for candidate in candidates}}


TABLE = {"x": {"boat": entry("ship", "boat", "ship"), "car": entry("car", "car", "van")},
         "y": {"boat": entry("boat", "boat", "ship")}, "z": {"boat": entry("ship", "boat", "ship")}}
TRUTH = {"x": {"boat": ["ship", "canoe"], "car": ["van"]}, "y": {"boat": ["ship"]}, "z": {"boat": ["canoe"]}}


def test_report_has_shares_and_a_picture(tmp_path):
    text = selection.report([(TABLE, TRUTH)], tmp_path / "radar.png")
    assert "| boat | 3 | 33 | 33 | 33 |" in text and "| all | 4 | 50 | 25 | 25 |" in text
    assert Image.open(tmp_path / "radar.png").mode == "RGB"
    assert "POLE's release" not in text  # a toy world has its own truth
    assert "| boat | 3 | 33 | 67 | 36.8 |" in selection.report([(TABLE, None)], tmp_path / "radar.png")


def test_the_command_reads_a_runs_file(tmp_path, capsys):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(TABLE))
    assert selection.main([str(path)]) == 0 and (tmp_path / "own_names.png").exists()
    assert "| car | 1 | 100 | 0 |" in capsys.readouterr().out


def test_truth_of_a_toy_world(tmp_path):
    draw_world(tmp_path / "world", 0, 4, 1)
    truth = selection.toy_truth(tmp_path / "world", "train")
    assert list(truth) == [f"train_0000{i}" for i in range(4)] and all(truth.values())


def test_the_released_shares_stand_beside_vocs_classes_alone():
    assert selection.released_shares(["dog", "bus"])["dog"] == 80.2
    assert selection.released_shares(["dog", "plane"]) == {}


def test_person_apart_from_player(tmp_path):
    """POLE's prompts call the class player; two of three choices here are another word, one of them "person"."""
    words = [entry(word, "player", "person", "human") for word in ("player", "person", "human")]
    line = ('The prompt name of the class person is "player"; the word "person" was chosen for 33.3 % '
            "(POLE's release: 27.1 %).")
    assert line in selection.report([({str(i): {"person": word} for i, word in enumerate(words)}, None)],
                                    tmp_path / "radar.png")
    assert selection.person_itself([({"x": {"person": entry("person", "person", "human")}}, None)]) == ""
    assert selection.person_itself([(TABLE, None)]) == ""
