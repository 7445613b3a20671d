"""POLE's released choices of words: a file of the original's form becomes prompts.json; other files in one line."""
import json
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from clipwsss.errors import InputError
from clipwsss.guidance import released_choices
from clipwsss.guidance.choices import WordChoices, count_choices, read_choices
from clipwsss.guidance.words import encode_words, load_words

TAGS = {"2007_000032": ["aeroplane", "person"], "2007_000648": ["motorbike", "bicycle"], "2011_003276": ["bird"]}
# As GPT_v2_4.json: pickled by protocol 3, names without "_", sentences in the order of the classes.
RELEASED = {"2007000032": ["a photo of plane.", "a photo of human."], "2007000648": ["a photo of bike.", "a photo of bike."],
            "2011003276": ["a photo of bird."]}


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, labels in TAGS.items():
        Image.fromarray(np.full((12, 20, 3), 90, np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        objects = "".join(f"<object><name>{label}</name></object>" for label in labels)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("\n".join(TAGS))
    (root / "ImageSets/Segmentation/val.txt").write_text("")
    return root


def convert(voc, content):
    """The table that the command writes for a file with this content."""
    path, out = voc.parent / "GPT_v2_4.json", voc.parent / "out" / "prompts.json"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=3))
    assert released_choices.main([str(path), "--data-root", str(voc), "--out", str(out)]) == 0
    return read_choices(out)


def test_the_released_words_are_the_ones_that_a_run_takes(voc, tiny_clip, capsys):
    table = convert(voc, RELEASED)
    assert "3 images" in capsys.readouterr().out
    chosen = {name: {label: entry["word"] for label, entry in rows.items()} for name, rows in table.items()}
    assert chosen == {"2007_000032": {"aeroplane": "plane", "person": "human"},
                      "2007_000648": {"bicycle": "bike", "motorbike": "bike"}, "2011_003276": {"bird": "bird"}}
    assert table["2007_000032"]["person"]["similarity"] == {"player": 0, "people": 0, "person": 0, "human": 1}
    assert {label: dict(count) for label, count in count_choices([(table, None)]).items()} == {
        "aeroplane": {"other": 1}, "bicycle": {"other": 1}, "bird": {"own": 1}, "motorbike": {"other": 1},
        "person": {"other": 1}}
    classes = ["aeroplane", "bicycle", "bird", "motorbike", "person"]
    words = load_words("voc12", classes)
    choices = WordChoices(tiny_clip, "a photo of {}.", words.candidates)
    choices.take_table(table, classes)
    text = choices.chosen_text(["2007_000032", "2007_000648"], torch.tensor([4, 1]))
    assert torch.allclose(text, encode_words(tiny_clip, "a photo of {}.", ["human", "bike"]), atol=1e-6)


@pytest.mark.parametrize(("change", "message"), [
    ({"2007000032": ["a photo of plane."]}, "image 2007_000032 has the classes aeroplane, person, and 1 sentences"),
    ({"2011003276": ["a photo of plane."]}, "'a photo of plane.' has no candidate of the class 'bird'; those are bird, fowl"),
    ({"2011003276": "a photo of bird."}, "image '2011003276' has no list of sentences")])
def test_a_file_that_does_not_fit_the_data(voc, change, message):
    with pytest.raises(InputError, match=message):
        convert(voc, RELEASED | change)


def test_an_image_that_the_file_does_not_have(voc):
    with pytest.raises(InputError, match="image 2011_003276 of the data set is not in the file"):
        convert(voc, {name: row for name, row in RELEASED.items() if name != "2011003276"})


class Runs:
    """Unpickled by plain pickle, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_that_are_no_choices_run_no_code(voc):
    mark = voc.parent / "mark"
    for content in (pickle.dumps({"2007000032": Runs(mark)}), json.dumps(RELEASED).encode(), b"", pickle.dumps(RELEASED)[:-40],
                    b"\x80\x03X" + struct.pack("<I", 2**31), pickle.dumps([1]), pickle.dumps({})):
        with pytest.raises(InputError, match="GPT_v2_4.json: not GPT_v2_4.json of POLE's release: "):
            convert(voc, content)
    assert not mark.exists()
