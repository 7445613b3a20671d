"""CLIP's byte-pair encoding (Sennrich et al., ACL 2016, on bytes): texts to the ids of its text transformer.

The 48,894 merges in bpe_merges.txt.gz are CLIP's (OpenAI, MIT licence), from open_clip_torch (MIT too).
"""
import gzip
import html
from functools import cache, lru_cache
from pathlib import Path

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


class BytePairs:
    """The ranks of the merges and the vocabulary.

    The vocabulary is, in this order: 256 bytes, 256 bytes at the end of a word, the merges, start and end. A
    byte is written as one letter: printable bytes as themselves, the others as the letters from 256 on.
    """

    def __init__(self, merges: list[tuple[str, str]]):
        printable = []
        for first, last in ("!~", "¡¬", "®ÿ"):
            printable.extend(range(ord(first), ord(last) + 1))
        others = [byte for byte in range(256) if byte not in printable]
        letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
        self.letter_of_byte = dict(zip(printable + others, letters))
        self.byte_of_letter = {letter: byte for byte, letter in self.letter_of_byte.items()}
        self.rank = {pair: rank for rank, pair in enumerate(merges)}
        last_letters = [letter + WORD_END for letter in letters]
        self.symbols = [*letters, *last_letters, *map("".join, merges), START, END]
        self.id_of = {symbol: index for index, symbol in enumerate(self.symbols)}
        self.special = {name: self.id_of[START] for name in START_NAMES}
        self.special.update({name: self.id_of[END] for name in END_NAMES})
        literal = "|".join(map(regex.escape, self.special))
        self.word_pattern = regex.compile(
            rf"{literal}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE)

    @lru_cache(maxsize=65536)
    def encode_word(self, word: str) -> tuple[int, ...]:
        """Ids of one word: the neighbouring pair of the lowest rank is merged until no pair has a rank."""
        if word in self.special:
            return (self.special[word],)
        symbols = [self.letter_of_byte[byte] for byte in word.encode()]
        symbols[-1] += WORD_END
        while len(symbols) > 1:
            best = min(zip(symbols, symbols[1:]), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            merged = []
            index = 0
            while index < len(symbols):
                width = 2 if tuple(symbols[index:index + 2]) == best else 1
                merged.append("".join(symbols[index:index + width]))
                index += width
            symbols = merged
        return tuple(self.id_of[symbol] for symbol in symbols)


@cache
def byte_pairs() -> BytePairs:
    """The shipped table, which is read when it is first used."""
    lines = gzip.decompress(MERGES_FILE.read_bytes()).decode().splitlines()
    return BytePairs([tuple(line.split()) for line in lines])


def encode(text: str) -> list[int]:
    """Ids of a text without start and end.

    Wrongly decoded letters and HTML entities are repaired, blanks are joined, and letters become lower case.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    text = " ".join(text.split()).lower()
    table = byte_pairs()
    return [token for word in table.word_pattern.findall(text) for token in table.encode_word(word)]


def decode(tokens: list[int]) -> str:
    """The text of ids from `encode` or of one row of `tokenize`; a blank follows each word."""
    table = byte_pairs()
    letters = "".join(table.symbols[token] for token in tokens)
    text = bytes(table.byte_of_letter[letter] for letter in letters).decode(errors="replace")
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
                                 "shorten it or pass truncate=True")
            tokens = [*tokens[:context_length - 1], end]
        row[:len(tokens)] = torch.tensor(tokens)
    return result
