"""CLIP's byte-pair encoding (Sennrich et al., ACL 2016, on bytes): text to its text transformer's ids.

The 48,894 merges in bpe_merges.txt.gz are CLIP's (OpenAI, MIT), from the MIT package open_clip_torch.
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
# Spelled as by OpenAI and as by open_clip; either stands for the one token of start and end.
START_NAMES, END_NAMES = ("<|startoftext|>", "<start_of_text>"), ("<|endoftext|>", "<end_of_text>")
START, END = START_NAMES[0], END_NAMES[0]
WORD_END = "</w>"


class BytePairs:
    """Merge ranks and the vocabulary: 256 bytes, the same ending a word, the merges, start and end."""

    def __init__(self, merges: list[tuple[str, str]]):
        printable = [byte for first, last in ("!~", "¡¬", "®ÿ") for byte in range(ord(first), ord(last) + 1)]
        others = [byte for byte in range(256) if byte not in printable]
        letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
        self.letter_of_byte = dict(zip(printable + others, letters))
        self.byte_of_letter = {letter: byte for byte, letter in self.letter_of_byte.items()}
        self.rank = {pair: rank for rank, pair in enumerate(merges)}
        last_letters = [letter + WORD_END for letter in letters]
        self.symbols = [*letters, *last_letters, *map("".join, merges), START, END]
        self.id_of = {symbol: index for index, symbol in enumerate(self.symbols)}
        self.special = dict.fromkeys(START_NAMES, self.id_of[START]) | dict.fromkeys(END_NAMES, self.id_of[END])
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
            merged, index = [], 0
            while index < len(symbols):
                width = 2 if tuple(symbols[index:index + 2]) == best else 1
                merged.append("".join(symbols[index:index + width]))
                index += width
            symbols = merged
        return tuple(self.id_of[symbol] for symbol in symbols)


@cache
def byte_pairs() -> BytePairs:
    """The shipped table, read at first use."""
    lines = gzip.decompress(MERGES_FILE.read_bytes()).decode().splitlines()
    return BytePairs([tuple(line.split()) for line in lines])


def encode(text: str) -> list[int]:
    """Ids of a text without start and end: mojibake and HTML entities undone, blanks joined, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    text = " ".join(text.split()).lower()
    table = byte_pairs()
    return [token for word in table.word_pattern.findall(text) for token in table.encode_word(word)]


def decode(tokens: list[int]) -> str:
    """Text of ids from `encode` or of one row of `tokenize`; words are followed by a blank."""
    table = byte_pairs()
    letters = "".join(table.symbols[token] for token in tokens)
    text = bytes(table.byte_of_letter[letter] for letter in letters).decode(errors="replace")
    return text.replace(WORD_END, " ")


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """Texts -> int64 [N,context_length]: start, ids, end of text (the largest id), zeros.

    Raises ValueError for a text of more than `context_length` tokens; `truncate` cuts it and keeps the end.
    """
    texts = [texts] if isinstance(texts, str) else texts
    start, end = byte_pairs().id_of[START], byte_pairs().id_of[END]
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
