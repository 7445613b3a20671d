"""Prompts with learned vectors: the template language, the prompt as a module, its file."""
import re
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip import CLIP, tokenize
from ..clip.tokenizer import encode
from ..errors import InputError, input_errors
from ..files import read_network, save_network

SLOT = re.compile(r"\[([SC])(?:\*(\d+)|:([^\]]*))\]")
PROMPT_STARTS = ("normal", "uniform")  # CoOp's N(0, 0.02^2), and U(0, 1) as in SemPLeS' release


class TemplatePart(NamedTuple):
    """A part of a template: its `kind` is "words" as they stand, or "shared" or "own" learned vectors.

    Learned vectors start from `words`, or are `count` vectors at random where words is None.
    """
    kind: str
    words: str | None
    count: int = 0


def parse_template(template: str) -> list[TemplatePart]:
    """The parts of a template, words and learned vectors in turn; InputError for brackets of another form.

    "a [S*2] {}." gives the words "a ", 2 shared vectors and the words " {}.".
    """
    parts = []
    end = 0
    for mark in SLOT.finditer(template):
        kind, count, words = mark.groups()
        parts.append(TemplatePart("words", template[end:mark.start()]))
        parts.append(TemplatePart("own" if kind == "C" else "shared", words, int(count or 0)))
        end = mark.end()
    parts.append(TemplatePart("words", template[end:]))
    literal = "".join(part.words for part in parts if part.kind == "words")
    if "[" in literal or "]" in literal:
        raise InputError(f"template {template!r}: vectors are written [S*n], [C*n] (n a whole number), "
                         "[S:words] or [C:words]")
    return parts


class LearnedPrompt(nn.Module):
    """Prompts with learned vectors; `template` says which positions are words and which are learned.

    [S*n] is n vectors shared by all classes, [C*n] n vectors of each class's own, {} the class's name, and
    all else literal words. [S:a photo of] and [C:{}] are as many vectors as those words have tokens and start
    from their embeddings; all other vectors are drawn at random as `start` says. "[S*16] {}." is CoOp (IJCV
    2022), "a photo of [C:{}]." POLE's target-only row, "[S:a photo of] [C:{}]." DeFo (arXiv 2210.04287),
    "a photo of [C*30]." SemPLeS' background prompt (sec. 3.3). `vectors` [V,width] are the only parameters.
    InputError, which names the `flag` of the template, for one that has nothing to learn, reads alike for all
    classes or is too long.
    """

    def __init__(self, clip: CLIP, template: str, names: list[str], start: str = "normal",
                 flag: str = "--template"):
        super().__init__()
        self.template = template
        self.names = list(names)
        parts = parse_template(template)
        tokens, vectors, begins = self._positions(parts)
        if not begins:
            raise InputError(f"{flag} {template!r}: nothing to learn; write [S*n] (shared) or [C*n] (per "
                             "class), or [S:words] and [C:words] to start from words")
        kinds = [part.kind for part in parts]
        if "{}" not in template and "own" not in kinds:
            raise InputError(f"{flag} {template!r}: it reads alike for all classes; write {{}} or [C*n]")
        start_token, end_token = tokenize("")[0, :2].tolist()
        length = max(map(len, tokens)) + 2
        if length > clip.context_length:
            raise InputError(f"{flag} {template!r}: {length} tokens with the start and end tokens, but "
                             f"this CLIP reads at most {clip.context_length}")
        # One row for each class: start token, words and vectors, end token, padding. Slots are -1 at words.
        # "[S*2] {}." and the class "boat": words [start, -, -, boat, ., end], slots [-1, 0, 1, -1, -1, -1].
        words = torch.full((len(names), length), start_token)
        slots = torch.full((len(names), length), -1)
        for k, (row, own) in enumerate(zip(tokens, vectors)):
            for position, (token, vector) in enumerate(zip(row, own), 1):
                if vector is None:
                    words[k, position] = token
                else:
                    slots[k, position] = vector
            words[k, len(row) + 1] = end_token
        ends = torch.tensor([len(row) + 1 for row in tokens])

        device = clip.text_projection.device
        with torch.no_grad(), input_errors(f"{flag} {template!r}: "):  # a small CLIP does not know every word
            embedded = clip.embed_tokens(words.to(device))
            if start == "uniform":
                values = torch.rand(len(begins), embedded.shape[-1])
            else:
                values = 0.02 * torch.randn(len(begins), embedded.shape[-1])
            for vector, token in enumerate(begins):
                if token is not None:
                    values[vector] = clip.embed_tokens(torch.tensor([[token]], device=device))[0, 0].cpu()
        self.vectors = nn.Parameter(values.to(device))
        self.register_buffer("words", embedded, persistent=False)
        self.register_buffer("slots", slots.to(device), persistent=False)
        self.register_buffer("ends", ends.to(device), persistent=False)

    def _positions(self, parts: list[TemplatePart]) -> tuple[list[list], list[list], list[int | None]]:
        """For each class, position by position, its token or None, and its vector's index or None.

        Third, for each vector the token that it starts from, or None for a random start. Shared vectors come
        first among the vectors, then those of one class after another.
        """
        begins: list[int | None] = []

        def new_vectors(part: TemplatePart, name: str) -> list[int]:
            first = len(begins)
            if part.words is None:
                begins.extend([None] * part.count)
            else:
                begins.extend(encode(part.words.replace("{}", name)))
            return list(range(first, len(begins)))

        shared = {}
        for index, part in enumerate(parts):
            if part.kind == "shared":
                shared[index] = new_vectors(part, "")
        all_tokens = []
        all_vectors = []
        for name in self.names:
            tokens = []
            vectors = []
            for index, part in enumerate(parts):
                if part.kind == "words":
                    literal = encode(part.words.replace("{}", name))
                    tokens += literal
                    vectors += [None] * len(literal)
                else:
                    learned = shared[index] if index in shared else new_vectors(part, name)
                    tokens += [None] * len(learned)
                    vectors += learned
            all_tokens.append(tokens)
            all_vectors.append(vectors)
        return all_tokens, all_vectors, begins

    def forward(self, clip: CLIP) -> Tensor:
        """Normalised text features [K,D] of the present vectors."""
        learned = self.vectors[self.slots.clamp(min=0)]
        embeddings = torch.where(self.slots[..., None] >= 0, learned, self.words)
        return F.normalize(clip.encode_text_embeddings(embeddings, self.ends), dim=-1)


def clip_mark(clip: CLIP) -> str:
    """A digest that tells one CLIP from another: of its text projection."""
    return sha256(clip.text_projection.detach().float().cpu().numpy().tobytes()).hexdigest()[:16]


@torch.no_grad()
def save_learned(prompt: LearnedPrompt, clip: CLIP, path: Path) -> None:
    """Write a prompt's vectors, with the text features [K,D] that later runs and pictures read."""
    config = {"template": prompt.template, "names": prompt.names, "text": prompt(clip).cpu(),
              "clip": clip_mark(clip)}
    save_network(prompt, "learned prompt", config, path)


def read_learned(path: Path, clip: CLIP, n_classes: int | None = None) -> tuple[list[str], Tensor]:
    """Names and text features [K,D] of a file of learned prompts; InputError where they do not fit."""
    config, _ = read_network(path, "learned prompt")
    text = config["text"]
    width = clip.text_projection.shape[1]
    if text.shape[-1] != width:
        raise InputError(f"{path}: its prompts were learned for a CLIP of {text.shape[-1]} dimensions; this "
                         f"CLIP has {width}")
    mark = clip_mark(clip)
    if config.get("clip", mark) != mark:  # older files do not tell their CLIP
        raise InputError(f"{path}: its prompts were learned for another CLIP; give the --clip of that run, "
                         "or learn them again")
    if n_classes is not None and len(text) != n_classes:
        raise InputError(f"{path}: it holds learned prompts of {len(text)} classes; this data has "
                         f"{n_classes}")
    return config["names"], text.to(clip.text_projection.device)
