"""Propose synonyms of each class for POLE from a list of words, by the cosine of CLIP's text features.

    python -m clipwsss.guidance.propose --classes classes.txt --words words.txt --n 4 --out synonyms.json
"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..clip import CLIP
from ..datasets.folder_files import read_classes
from ..progress import Progress
from ..training import pick_device
from ..files import write_json
from ..errors import InputError, run_script
from ..flags import Parser, clip_flags, file_to_write, whole
from .regions import load_clip
from .words import encode_words, read_words


class Candidate(NamedTuple):
    """A word, its cosine to the class, and by how much that exceeds the cosine to the next class.

    margin is infinite where there is only one class.
    """
    word: str
    cosine: float
    margin: float


def similarities(clip: CLIP, names: Sequence[str], words: Sequence[str], batch_size: int = 256) -> Tensor:
    """Cosines [N,K] of "a photo of {}." of N words to that of K class names, with blanks for underscores."""
    progress = Progress("encode words", len(words), "words")
    text = encode_words(clip, "a photo of {}.", [name.replace("_", " ") for name in names])
    parts = [text[:0] @ text.T]  # [0,K], so that a list without words works too
    for start in range(0, len(words), batch_size):
        parts.append(encode_words(clip, "a photo of {}.", words[start:start + batch_size]) @ text.T)
        progress.update(len(parts[-1]))
    progress.close()
    return torch.cat(parts)


def rate(clip: CLIP, classes: Mapping[str, Sequence[str]]) -> list[list[Candidate]]:
    """The given words of classes (name -> words) with their cosines.

    A negative margin means that another class is more similar.
    """
    places = [(word, number) for number, words in enumerate(classes.values()) for word in words]
    similarity = similarities(clip, list(classes), [word for word, _ in places])
    rated: list[list[Candidate]] = [[] for _ in classes]
    for (word, number), row in zip(places, similarity.tolist()):
        others = [cosine for other, cosine in enumerate(row) if other != number]
        rated[number].append(Candidate(word, row[number], row[number] - max(others, default=-float("inf"))))
    return rated


def propose(clip: CLIP, names: Sequence[str], words: Sequence[str], count: int,
            batch_size: int = 256) -> list[list[Candidate]]:
    """Up to `count` candidates for each of K class names, by falling cosine of "a photo of {}." texts.

    A word is a candidate of the most similar class only. The names themselves are left out, in upper or lower
    case, with blanks or underscores.
    """
    own = {name.casefold().replace("_", " ") for name in names}
    unique = {}
    for word in words:
        if word.casefold().replace("_", " ") not in own:
            unique[word.casefold()] = word
    words = list(unique.values())
    similarity = similarities(clip, names, words, batch_size)
    cosines, nearest = similarity.max(dim=1)
    others = similarity.scatter(1, nearest[:, None], -torch.inf).amax(dim=1)
    chosen: list[list[Candidate]] = [[] for _ in names]
    for index in cosines.argsort(descending=True, stable=True).tolist():
        if len(chosen[nearest[index]]) < count:
            margin = (cosines[index] - others[index]).item()
            chosen[nearest[index]].append(Candidate(words[index], cosines[index].item(), margin))
    return chosen


def described(row: Sequence[Candidate]) -> str:
    """Candidates in a line: each word, its cosine and its lead."""
    return ", ".join(f"{word} {cosine:.2f} ({margin:+.2f})" for word, cosine, margin in row)


def clip_parser(module: str, description: str) -> Parser:
    """A parser for `python -m clipwsss.guidance.MODULE` with the flags that choose CLIP and where it runs."""
    parser = Parser(prog=f"python -m clipwsss.guidance.{module}", description=description)
    add = parser.add_argument
    clip_flags(add)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="device to compute on; auto takes CUDA where it is available")
    return parser


def get_parser() -> Parser:
    """The command's flags."""
    parser = clip_parser("propose", __doc__.splitlines()[0])
    add = parser.add_argument
    add("--classes", type=Path, required=True,
        help="classes.txt of your data: one class a line, with or without synonyms")
    add("--words", type=Path, required=True, help="text file of words or phrases, one a line")
    add("--n", type=whole(1), default=4, help="largest number of words that are proposed for a class")
    add("--out", type=file_to_write(".json"), default=Path("synonyms.json"),
        help="JSON file of the synonyms, for train_prompt.py --synonyms")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    classes = read_classes(args.classes)
    words = read_words(args.words)
    clip = load_clip(args.clip, pick_device(args.device), args.clip_cache, args.clip_model)
    known = {word.casefold() for row in classes.values() for word in row}
    new_words = [word for word in words if word.casefold() not in known]
    source = f"--classes {args.classes}"
    try:
        own = rate(clip, classes)
        source = f"--words {args.words}"
        new = propose(clip, list(classes), new_words, args.n)
    except ValueError as error:  # a text is too long, or a small CLIP does not know a word
        raise InputError(f"{source}: {error}") from error
    print("Cosine of each word to its class, and by how much it exceeds the cosine to the next class. Your "
          "own words stand before the bar.")
    wide = max(map(len, classes))
    kept = {}
    for name, given, proposed in zip(classes, own, new):
        line = "(none)"
        if given or proposed:
            line = f"{described(given)} | {described(proposed)}"
        print(f"{name:<{wide}}  {line}")
        kept[name] = [candidate.word for candidate in (*given, *proposed)]
    write_json(kept, args.out)
    print(f"written to {args.out}; use it with: python train_prompt.py --method pole --synonyms {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
