"""Candidates for POLE's words from any word list, by CLIP's text similarity: no language model needed.

    python -m clipwsss.guidance.propose --classes classes.txt --words words.txt --n 4 --out synonyms.json
"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..clip import CLIP
from ..datasets.folder import read_classes
from ..progress import Progress
from ..training import pick_device
from ..files import write_json
from ..errors import InputError, run_script
from ..flags import Parser, file_to_write, whole
from .regions import load_clip
from .words import encode_words, read_words


class Candidate(NamedTuple):
    """A word, its cosine to the class and by how much that exceeds the next class's (inf: there is none)."""
    word: str
    cosine: float
    margin: float


def similarities(clip: CLIP, names: Sequence[str], words: Sequence[str], batch_size: int = 256) -> Tensor:
    """Cosines [N,K] of "a photo of {}." of N words to that of K class names."""
    progress = Progress("encode words", len(words), "words")
    text = encode_words(clip, "a photo of {}.", names)
    parts = [text[:0] @ text.T]  # all there is where there are no words
    for start in range(0, len(words), batch_size):
        parts.append(encode_words(clip, "a photo of {}.", words[start:start + batch_size]) @ text.T)
        progress.update(len(parts[-1]))
    progress.close()
    return torch.cat(parts)


def rate(clip: CLIP, classes: Mapping[str, Sequence[str]]) -> list[list[Candidate]]:
    """What CLIP thinks of the words of classes (name -> words); negative margins: another class is nearer."""
    places = [(word, number) for number, words in enumerate(classes.values()) for word in words]
    similarity = similarities(clip, list(classes), [word for word, _ in places])
    rated: list[list[Candidate]] = [[] for _ in classes]
    for (word, number), row in zip(places, similarity.tolist()):
        others = [cosine for other, cosine in enumerate(row) if other != number]
        rated[number].append(Candidate(word, row[number], row[number] - max(others, default=-float("inf"))))
    return rated


def propose(clip: CLIP, names: Sequence[str], words: Sequence[str], count: int,
            batch_size: int = 256) -> list[list[Candidate]]:
    """For each of K class names up to `count` candidates by falling cosine of "a photo of {}." texts.

    A word serves the class it is nearest to and no other; names themselves (in any case) are left out.
    """
    own = {name.casefold() for name in names}
    words = list({word.casefold(): word for word in words if word.casefold() not in own}.values())
    similarity = similarities(clip, names, words, batch_size)
    cosines, nearest = similarity.max(dim=1)
    others = similarity.scatter(1, nearest[:, None], -torch.inf).amax(dim=1)
    chosen: list[list[Candidate]] = [[] for _ in names]
    for index in cosines.argsort(descending=True, stable=True).tolist():
        if len(chosen[nearest[index]]) < count:
            margin = (cosines[index] - others[index]).item()
            chosen[nearest[index]].append(Candidate(words[index], cosines[index].item(), margin))
    return chosen


def clip_parser(module: str, description: str) -> Parser:
    """A parser for `python -m clipwsss.guidance.MODULE` with the flags that choose CLIP and where it runs."""
    parser = Parser(prog=f"python -m clipwsss.guidance.{module}", description=description)
    add = parser.add_argument
    add("--clip", default="ViT-B/32", help="published name or file; the one that prompts were learned with")
    add("--clip-cache", type=Path, help="folder of CLIP weights (default: the torch hub folder)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA if there is any")
    return parser


def get_parser() -> Parser:
    parser = clip_parser("propose", __doc__.splitlines()[0])
    add = parser.add_argument
    add("--classes", type=Path, required=True, help="classes.txt of your data, one class a line")
    add("--words", type=Path, required=True, help="word list, one word or phrase a line")
    add("--n", type=whole(1), default=4, help="candidates of a class beside its own name and words, at most")
    add("--out", type=file_to_write(".json"), default=Path("synonyms.json"),
        help="what train_prompt.py --synonyms reads")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    classes, words = read_classes(args.classes), read_words(args.words)
    clip = load_clip(args.clip, pick_device(args.device), args.clip_cache)
    known, source = {word.casefold() for row in classes.values() for word in row}, f"--classes {args.classes}"
    try:
        own = rate(clip, classes)
        source = f"--words {args.words}"
        new = propose(clip, list(classes), [word for word in words if word.casefold() not in known], args.n)
    except ValueError as error:  # too long for this CLIP, or a word a small CLIP does not know
        raise InputError(f"{source}: {error}") from error
    print("CLIP's cosine to each class (and by how much it exceeds the next class's), yours before the bar:")
    wide, kept = max(map(len, classes)), {}
    for name, *rows in zip(classes, own, new):
        line = " | ".join(", ".join(f"{word} {cosine:.2f} ({margin:+.2f})" for word, cosine, margin in row)
                          for row in rows)
        print(f"{name:<{wide}}  {line if any(rows) else '(none)'}")
        kept[name] = [candidate.word for row in rows for candidate in row]
    write_json(kept, args.out)
    print(f"written to {args.out}; use it with: python train_prompt.py --method pole --synonyms {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
