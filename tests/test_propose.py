"""Candidates from a word list: each toy class gets its own sub-types; what is read back; bad lists in one line."""
import json

import pytest

from clipwsss.guidance import propose
from clipwsss.errors import InputError, run_script
from clipwsss.guidance.regions import load_clip
from clipwsss.guidance.words import corpora, encode_words, load_words
from clipwsss.toy.clip import WORDS
from clipwsss.toy.scenes import CLASSES, SUBTYPES


@pytest.fixture(scope="module")
def toy_clip():
    return load_clip("toy", "cpu")


@pytest.fixture
def word_list(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS))
    return path


def test_each_toy_class_gets_its_own_subtypes(word_list, tmp_path, capsys):
    out, classes = tmp_path / "synonyms.json", tmp_path / "classes.txt"
    classes.write_text("\n".join(CLASSES))
    argv = ["--classes", str(classes), "--words", str(word_list), "--clip", "toy", "--n", "3", "--out", str(out)]
    assert propose.main(argv) == 0
    table = json.loads(out.read_text())
    assert {name: set(words) for name, words in table.items()} == {name: set(row) for name, row in SUBTYPES.items()}
    assert f"--synonyms {out}" in capsys.readouterr().out
    assert load_words("toy", CLASSES, synonyms_file=out).candidates[0][1:] == table["boat"]


def test_order_and_names(toy_clip):
    cosines = {word: float(encode_words(toy_clip, "a photo of {}.", ["boat"])[0]
                           @ encode_words(toy_clip, "a photo of {}.", [word])[0]) for word in ("ship", "canoe", "water")}
    found = propose.propose(toy_clip, ["boat", "train"], ["canoe", "Boat", "water", "ship", "TRAIN", "ship"], 9)
    assert [word for word, *_ in found[0]] == sorted(cosines, key=cosines.get, reverse=True) and found[1] == []
    assert all(value == pytest.approx(cosines[word], abs=1e-5) for word, value, _ in found[0])
    ship, boats, train = (encode_words(toy_clip, "a photo of {}.", [word])[0] for word in ("ship", "boat", "train"))
    assert next(item.margin for item in found[0] if item.word == "ship") == pytest.approx(
        float(ship @ boats - ship @ train), abs=1e-5)
    alone = propose.propose(toy_clip, ["boat"], ["canoe", "ship"], 1)[0]
    assert len(alone) == 1 and alone[0].margin == float("inf")
    assert propose.propose(toy_clip, ["boat"], ["boat"], 3) == [[]]
    assert propose.propose(toy_clip, ["brick_boat"], ["Brick boat", "brick_boat"], 3) == [[]]
    one, other = (propose.similarities(toy_clip, [name], ["ship"]) for name in ("brick_boat", "brick boat"))
    assert one.equal(other)


def test_a_class_own_words_are_rated(toy_clip):
    rated = propose.rate(toy_clip, {"boat": ["ship", "van"], "car": [], "sheep": ["van"]})
    texts = {word: encode_words(toy_clip, "a photo of {}.", [word])[0] for word in ("ship", "van", "boat", "car", "sheep")}
    cosine = {name: float(texts["van"] @ texts[name]) for name in ("boat", "car", "sheep")}
    assert [[item.word for item in row] for row in rated] == [["ship", "van"], [], ["van"]]
    assert rated[2][0].cosine == pytest.approx(cosine["sheep"], abs=1e-5)
    assert rated[2][0].margin == pytest.approx(cosine["sheep"] - max(cosine["boat"], cosine["car"]), abs=1e-5)
    assert rated[2][0].margin < 0 < rated[0][0].margin
    assert propose.rate(toy_clip, {"boat": ["ship"]})[0][0].margin == float("inf")


def test_batches_change_nothing(toy_clip):
    whole, split = (propose.propose(toy_clip, CLASSES, WORDS, 4, batch_size=size) for size in (256, 5))
    assert [[item.word for item in row] for row in whole] == [[item.word for item in row] for row in split]


def test_own_classes_and_bad_lists(word_list, tmp_path, capsys):
    classes, out = tmp_path / "classes.txt", tmp_path / "s.json"
    classes.write_text("boat\ncar: van\n")
    argv = ["--classes", str(classes), "--words", str(word_list), "--clip", "toy", "--n", "2", "--out", str(out)]
    assert propose.main(argv) == 0
    table, lines = json.loads(out.read_text()), capsys.readouterr().out.splitlines()
    assert table["car"][0] == "van" and len(table["car"]) == 3 and len(set(table["car"])) == 3  # yours stay
    line = next(line for line in lines if line.startswith("car "))
    assert line.index("van") < line.index(" | ") < line.index(table["car"][1])
    for text, message in (("\n\n", "the file holds no words"), ("zebra\n", "this small CLIP knows 49 tokens, and not 'zebra'"),
                          ("boat " * 40, "words.txt")):
        word_list.write_text(text)
        assert run_script(lambda: propose.main(argv)) == 2
        error = capsys.readouterr().err
        assert message in error and str(word_list) in error and len(error.splitlines()) == 1
    with pytest.raises(InputError, match="absent.txt: no such file"):
        propose.read_words(tmp_path / "absent.txt")


def test_built_in_corpora_by_name(tmp_path):
    classes = list(corpora("voc12")["chatgpt"])
    assert list(corpora("voc12")) == ["chatgpt", "bnc", "chatgpt-long", "news", "wikipedia"] and len(classes) == 20
    assert all(list(lists) == classes for lists in corpora("voc12").values())
    words = load_words("voc12", classes, synonyms_file="bnc")
    assert words.candidates[3] == ["boat", "moor", "yacht", "sail"]
    assert load_words("voc12", classes, synonyms_file="chatgpt") == load_words("voc12", classes)
    assert load_words("voc12", classes, synonyms_file="wikipedia", n_synonyms=1).candidates[12] == ["horse", "hors"]
    assert load_words("voc12", classes, synonyms_file="news", n_synonyms=2).candidates[14] == ["player", "person", "someone"]
    assert "railway" in words.candidates[18] and "railway" in words.background  # published lists are used whole
    with pytest.raises(InputError, match="there is no such file and no built-in list .*bnc, chatgpt-long, news"):
        load_words("voc12", classes, synonyms_file="bcn")
    with pytest.raises(InputError, match="none for this data set"):
        load_words("folder", ["cat"], synonyms_file="bnc")


def test_no_corpus_repeats_a_word_or_the_prompt_name():
    for dataset in ("voc12", "coco14", "toy"):
        for corpus, lists in corpora(dataset).items():
            names = dict(zip(lists, load_words(dataset, list(lists)).names))
            for label, words in lists.items():
                folded = [word.casefold() for word in (names[label], *words)]
                assert len(set(folded)) == len(folded), (dataset, corpus, label)
