"""Candidates for POLE's words from any word list, by CLIP's text similarity: no language model needed.

    python -m clipwsss.propose --classes classes.txt --words words.txt --n 4 --out synonyms.json
"""
import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .clip import CLIP
from .datasets.folder import read_classes
from .engine import Progress, pick_device, write_json
from .errors import InputError, run_script
from .guidance import load_clip
from .prompts import ASSETS, encode_words


def propose(clip: CLIP, names: Sequence[str], words: Sequence[str], count: int, least: float = 0.0,
            template: str = "a photo of {}.", batch_size: int = 256) -> list[list[tuple[str, float]]]:
    """For each of K class names up to `count` (word, cosine) by falling cosine of their texts.

    A word serves the class it is nearest to and no other; names themselves (in any case) and words below
    `least` are left out. A list may be empty.
    """
    own = {name.casefold() for name in names}
    words = list({word.casefold(): word for word in words if word.casefold() not in own}.values())
    progress = Progress("encode words", len(words), "words")
    text, parts = encode_words(clip, template, names), []
    for start in range(0, len(words), batch_size):
        parts.append(encode_words(clip, template, words[start:start + batch_size]) @ text.T)
        progress.update(len(parts[-1]))
    progress.close()
    found: list[list[tuple[str, float]]] = [[] for _ in names]
    if not parts:
        return found
    cosines, nearest = torch.cat(parts).max(dim=1)
    for index in cosines.argsort(descending=True, stable=True).tolist():
        row = found[nearest[index]]
        if len(row) < count and cosines[index] >= least:
            row.append((words[index], cosines[index].item()))
    return found


def read_names(dataset: str | None, classes: Path | None) -> dict[str, str]:
    """Class -> its name in prompts: a built-in data set's, or those of a `folder` data set's classes.txt."""
    if classes is not None:
        return {name: name for name in read_classes(classes)}
    return json.loads((ASSETS / f"prompts_{dataset}.json").read_text())["names"]


def read_words(path: Path) -> list[str]:
    """One word or phrase a line; InputError on a missing, unreadable or empty file."""
    try:
        words = [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--words {path}: not a readable text file ({error})") from error
    words = [word for word in words if word]
    if not words:
        raise InputError(f"--words {path}: no words in it; write one word or phrase a line")
    return words


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m clipwsss.propose", description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--classes", type=Path, help="classes.txt of your own data, one class a line")
    known = [path.stem.removeprefix("prompts_") for path in sorted(ASSETS.glob("prompts_*.json"))]
    which.add_argument("--dataset", choices=known, help="a built-in data set's classes")
    add("--words", type=Path, required=True, help="word list, one word or phrase a line")
    add("--n", type=int, default=4, help="candidates of a class beside its own name, at most")
    add("--min-similarity", type=float, default=0.0, help="leave out words whose cosine is below this")
    add("--template", default="a photo of {}.", help="the text that is compared; {} is the word")
    add("--clip", default="ViT-B/32", help="published name or file")
    add("--clip-cache", type=Path, help="folder of CLIP weights (default: the torch hub folder)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA if there is any")
    add("--out", type=Path, default=Path("synonyms.json"), help="what train_prompt.py --synonyms reads")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if args.n < 1:
        raise InputError(f"--n {args.n}: at least 1 candidate")
    if "{}" not in args.template:
        raise InputError(f"--template {args.template!r}: has no {{}} for the word")
    names, words = read_names(args.dataset, args.classes), read_words(args.words)
    clip = load_clip(args.clip, pick_device(args.device), args.clip_cache)
    try:
        found = propose(clip, list(names.values()), words, args.n, args.min_similarity, args.template)
    except ValueError as error:  # too long for this CLIP, or a word a small CLIP does not know
        raise InputError(f"--words {args.words}: {error}") from error
    wide = max(map(len, names))
    for name, row in zip(names, found):
        print(f"{name:<{wide}}  " + (", ".join(f"{word} {cosine:.2f}" for word, cosine in row) or "(none)"))
    write_json({name: [word for word, _ in row] for name, row in zip(names, found)}, args.out)
    print(f"written to {args.out}; use it with: python train_prompt.py --method pole --synonyms {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
