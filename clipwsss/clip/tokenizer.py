"""CLIP's byte-pair encoding (Sennrich et al., ACL 2016, on bytes): texts to the ids of its text transformer.

The 48,894 merges in bpe_merges.txt.gz are CLIP's (OpenAI, MIT licence), from open_clip_torch (MIT too).
"""
import gzip
import html
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import ftfy
import regex
import torch
from torch import Tensor

MERGES_FILE = Path(__file__).with_name("bpe_merges.txt.gz")
# OpenAI's and open_clip's spellings of the tokens of start and end.
START_NAMES = ("<|startoftext|>", "<start_of_text>")
END_NAMES = ("<|endoftext|>", "<end_of_text>")
START = START_NAMES[0]
END = END_NAMES[0]
WORD_END = "</w>"
VOCABULARY = 49408  # tokens: see `BytePairs`

WORD_PATTERN = regex.compile(
    "|".join(map(regex.escape, START_NAMES + END_NAMES))
    + r"|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)


class BytePairs(NamedTuple):
    """CLIP's vocabulary and merges.

    symbols: the vocabulary in the order of its ids. It has 256 bytes, 256 bytes at the end of a word, the
    merges, start and end. A byte is written as one letter: printable bytes as themselves, the others as the
    letters from 256 on. id_of: the id of a symbol, and of other spellings of start and end. rank: the place
    of a pair of symbols among the merges.
    """
    letter_of_byte: dict[int, str]
    symbols: list[str]
    id_of: dict[str, int]
    rank: dict[tuple[str, str], int]


@cache
def byte_pairs() -> BytePairs:
    """The shipped table, which is read when it is first used."""
    printable = []
    for first, last in ("!~", "¡¬", "®ÿ"):
        printable.extend(range(ord(first), ord(last) + 1))
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    last_letters = [letter + WORD_END for letter in letters]
    lines = gzip.decompress(MERGES_FILE.read_bytes()).decode().splitlines()
    merges = [tuple(line.split()) for line in lines]
    symbols = [*letters, *last_letters, *map("".join, merges), START, END]
    id_of = {symbol: index for index, symbol in enumerate(symbols)}
    id_of.update({name: id_of[START] for name in START_NAMES})
    id_of.update({name: id_of[END] for name in END_NAMES})
    rank = {pair: place for place, pair in enumerate(merges)}
    return BytePairs(dict(zip(printable + others, letters)), symbols, id_of, rank)


@lru_cache(maxsize=65536)
def encode_word(word: str) -> tuple[int, ...]:
    """Ids of one word: the neighbouring pair of the lowest rank is merged until no pair has a rank."""
    table = byte_pairs()
    if word in START_NAMES + END_NAMES:
        return (table.id_of[word],)
    symbols = [table.letter_of_byte[byte] for byte in word.encode()]
    symbols[-1] += WORD_END
    while len(symbols) > 1:
        best = min(zip(symbols, symbols[1:]), key=lambda pair: table.rank.get(pair, len(table.rank)))
        if best not in table.rank:
            break
        merged = []
        index = 0
        while index < len(symbols):
            width = 2 if tuple(symbols[index:index + 2]) == best else 1
            merged.append("".join(symbols[index:index + width]))
            index += width
        symbols = merged
    return tuple(table.id_of[symbol] for symbol in symbols)


def encode(text: str) -> list[int]:
    """Ids of a text without start and end.

    Wrongly decoded letters and HTML entities are repaired, blanks are joined, and letters become lower case.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    text = " ".join(text.split()).lower()
    return [token for word in WORD_PATTERN.findall(text) for token in encode_word(word)]


def decode(tokens: list[int]) -> str:
    """The text of ids from `encode` or of one row of `tokenize`; a blank follows each word."""
    table = byte_pairs()
    letters = "".join(table.symbols[token] for token in tokens)
    byte_of_letter = {letter: byte for byte, letter in table.letter_of_byte.items()}
    text = bytes(byte_of_letter[letter] for letter in letters).decode(errors="replace")
    return text.replace(WORD_END, " ")


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """Texts -> int64 [N,context_length]: start, the text's ids, end of text (the largest id), zeros.

    truncate: a text of more than `context_length` tokens is cut and keeps its end of text; without it such a
    text is a ValueError.
    """
    if isinstance(texts, str):
        texts = [texts]
    start = byte_pairs().id_of[START]
    end = byte_pairs().id_of[END]
    result = torch.zeros(len(texts), context_length, dtype=torch.int64)
    for row, text in zip(result, texts):
        tokens = [start, *encode(text), end]
        if len(tokens) > context_length:
            if not truncate:
                beginning = text if len(text) <= 40 else text[:40] + "..."
                raise ValueError(f"text of {len(tokens)} tokens where {context_length} fit: {beginning!r}; "
                                 "shorten it (in Python, truncate=True cuts it)")
            tokens = [*tokens[:context_length - 1], end]
        row[:len(tokens)] = torch.tensor(tokens)
    return result
