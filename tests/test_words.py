"""Words of data sets: shipped lists, a user's own, bad files."""
import json

import pytest

from clipwsss.errors import InputError
from clipwsss.guidance.words import ASSETS, load_words


def test_voc_and_coco_words():
    voc = load_words("voc12", ["person", "pottedplant", "cat"])
    assert voc.names == ["player", "potted plant", "cat"]
    assert load_words("voc12", ["person", "cat"], person="person").names == ["person", "cat"]
    assert voc.candidates[0] == ["player", "people", "person", "human"]
    assert voc.candidates[2][1:] == ["feline", "tomcat", "kitty"]
    assert voc.background[:3] == ["tree", "river", "sea"] and len(voc.background) == 10
    names = list(json.loads((ASSETS / "prompts_coco14.json").read_text())["names"])
    coco = load_words("coco14", names)
    assert len(names) == 80 < len(coco.background) and all(3 <= len(row) <= 5 for row in coco.candidates)


def test_own_data_words(tmp_path):
    words = load_words("folder", ["lake", "cat"], synonyms={"cat": ["kitty", "cat", "moggy"]})
    assert words.candidates == [["lake"], ["cat", "kitty", "moggy"]] and "lake" not in words.background
    assert words.with_background(["sea", "kitty", "sea", "lake"]).background == ["sea"]
    path = tmp_path / "s.json"
    path.write_text('{"cat": ["tabby", "tom", "puss"]}')
    assert load_words("folder", ["lake", "cat"], None, path, 2).candidates[1] == ["cat", "tabby", "tom"]
    path.write_text('{"dog": ["hound"]}')
    with pytest.raises(InputError, match="unknown class 'dog'; the classes are lake, cat"):
        load_words("folder", ["lake", "cat"], None, path)
    path.write_text('{"cat": "tabby"}')
    with pytest.raises(InputError, match="expected an object of lists"):
        load_words("folder", ["lake", "cat"], None, path)
