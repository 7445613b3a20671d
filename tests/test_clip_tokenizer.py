"""Token ids against open_clip's on varied strings, limits, decoding and the shipped merge table."""
import gzip
import importlib
import random
import shutil
import sys
from pathlib import Path

import pytest

from clipwsss.clip import tokenize
from clipwsss.clip import tokenizer as tokenizer_module
from clipwsss.clip.tokenizer import decode

START, END = 49406, 49407


def varied_strings() -> list[str]:
    """Hand-picked hard cases, then seeded mixtures of words, scripts, digits, marks and blanks."""
    picked = [
        "", " ", "a", "A photo of a dog.", "it's we'll they'd I'M you've they're don't rock'n'roll 'S 's",
        "naïve café", "CAFE\u0301 crème brûlée", "Ünïcödé straße ŒUVRE İstanbul ſet", "犬の写真", "사진 속의 개",
        "фото собаки", "صورة كلب", "🐶🐕‍🦺 a dog 👩🏽‍🚀!!", "♥☃ ½ ² Ⅷ ٣ ५",
        "&amp; &lt;b&gt; &amp;lt; &eacute; &#233; &#x1F436; &nbsp;x &notanentity;",
        "schÃ¶n â€œquotedâ€\x9d", "tabs\tand\nnew lines\r\n  many   blanks",
        "1234567890 3.14 10,000 2nd 100%",
        "a_b-c/d\\e@f#g$h^i*j(k)[l]{m}<n>|o~p`q", "...!?!?;;::--",
        "a <start_of_text> b <end_of_text> c", "x" * 300, "word " * 200, "supercalifragilisticexpialidocious",
        "http://example.org/a?b=c&d=e", "\u200bzero\u200dwidth\ufeff", "ﬁ ﬂ ligatures ｆｕｌｌｗｉｄｔｈ",
        "𝒹ℴ𝓰", "\x00\x01\x7f",
        "dining table", "tv monitor", "a clean origami potted plant.", "</w> a</w>b"]
    chance = random.Random(0)
    words = ("a photo of the dog cats sheep motorbike aeroplanes tvmonitor it's Zürich naïve &amp; "
             "&quot;x&quot; 42 3.5 10% 犬 собака 🐶 ... !? -- don't we'll Ångström BOAT (small) #tag "
             "e-mail").split()
    spans = (
        (0x20, 0x7f), (0xa0, 0x17f), (0x370, 0x4ff), (0x4e00, 0x4eff), (0x1f600, 0x1f64f), (0x2000, 0x206f))
    for _ in range(300):
        between = chance.choice((" ", "  ", "\n", ", "))
        picked.append(between.join(chance.choices(words, k=chance.randint(1, 30))))
        letters = (chance.randint(*chance.choice(spans)) for _ in range(chance.randint(1, 40)))
        picked.append("".join(map(chr, letters)))
    return picked


def test_ids_equal_open_clip():
    open_clip = pytest.importorskip("open_clip")
    texts = varied_strings()
    assert len(set(texts)) > 600
    expected = open_clip.tokenize(texts)
    ours = tokenize(texts, truncate=True)
    assert ours.dtype == expected.dtype and ours.shape == expected.shape == (len(texts), 77)
    wrong = [text for text, row, other in zip(texts, ours, expected) if not row.equal(other)]
    assert not wrong
    assert sum(END == row[-1] for row in expected) >= 5  # truncation was among the cases


@pytest.mark.smoke
def test_known_ids():
    expected = [START, 320, 1125, 539, 320, 1929, END]
    row = tokenize("a photo of a dog")[0]
    assert row[:7].tolist() == expected and not row[7:].any()
    short = tokenize(["", "a  DOG"], context_length=5)
    assert short.tolist() == [[START, END, 0, 0, 0], [START, 320, 1929, END, 0]]


def test_too_long_text():
    text = "nine horses " * 40
    with pytest.raises(ValueError, match=r"82 tokens where 77 fit: 'nine horses .*truncate=True") as caught:
        tokenize(["short", text])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 160
    cut = tokenize(text, truncate=True)[0]
    assert cut[0] == START and cut[-1] == END and cut[1:-1].equal(tokenize(text, 100)[0, 1:76])


def test_exactly_full_text_is_kept():
    row = tokenize("dog " * 75)[0]
    assert row[-1] == END and (row[1:-1] == 1929).all()


def test_both_spellings_of_the_special_tokens():
    for start, end in (("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>")):
        assert tokenize(f"{start} a dog {end}", 7)[0].tolist() == [START, START, 320, 1929, END, END, 0]
        assert tokenize(f"{start.upper()}dog", 5)[0].tolist() == [START, START, 1929, END, 0]
        assert tokenizer_module.encode(f"{start}{end}") == [START, END]
        assert len(tokenizer_module.encode(f"{start[:-1]} {end[1:]}")) > 2  # half of a token is text


def test_decode():
    text = "it 's a naïve 犬 🐶 photo"
    assert decode(tokenizer_module.encode(text)) == text + " "
    row = tokenize("a dog", context_length=4)[0].tolist()
    assert decode(row) == "<|startoftext|>a dog <|endoftext|>"


def test_merge_table_is_clips():
    content = tokenizer_module.MERGES_FILE.read_bytes()
    assert content[4:8] == bytes(4)  # no date inside: the same bytes whenever it is made
    merges = gzip.decompress(content).decode().split("\n")
    assert len(merges) == 48894 + 1 and merges[-1] == ""
    open_clip = pytest.importorskip("open_clip")
    theirs = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    assert merges[:-1] == gzip.decompress(theirs).decode().split("\n")[1:48895]


def test_folder_works_alone(tmp_path, monkeypatch):
    shutil.copytree(Path(tokenizer_module.__file__).parent, tmp_path / "lifted_clip",
                    ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setitem(sys.modules, "clipwsss", None)  # its import fails
    monkeypatch.syspath_prepend(tmp_path)
    lifted = importlib.import_module("lifted_clip")
    byte_pairs = importlib.import_module("lifted_clip.tokenizer").byte_pairs
    assert byte_pairs.cache_info().currsize == 0, "the table is read when the module is imported"
    assert lifted.tokenize("a dog")[0, :4].tolist() == [START, 320, 1929, END]
    assert lifted.CLIP.__module__ == "lifted_clip.model"
