"""What stands for a class or its background: words from JSON, prompts that give text features in one call."""
import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..clip import CLIP, tokenize
from ..clip.tokenizer import encode
from ..files import load_weights, save_atomic
from ..errors import InputError

MARK = re.compile(r"\[([SC])\*(\d+)\]")


@torch.no_grad()
def encode_words(clip: CLIP, template: str, words: Sequence[str]) -> torch.Tensor:
    """Normalised text features [len(words),D] of `template` with each word for its {}; [0,D] for no words."""
    device = clip.text_projection.device
    if not words:
        return torch.empty(0, clip.text_projection.shape[1], device=device)
    try:
        tokens = tokenize([template.replace("{}", word) for word in words])
        return F.normalize(clip.encode_text(tokens.to(device)), dim=-1)
    except ValueError as error:  # a text too long, or a word that a small CLIP does not know
        raise InputError(f"template {template!r}: {error}") from error


class Prompt(nn.Module):
    """What every prompt answers, so that the training loop knows no methods.

    `prompt(names, classes, regions)` gives text features [N,D] (or [N,M,D] of M prompts a class) for N pairs
    of images (their `names`) and classes [N]; `regions` [N,D] are the pairs' foreground features, if at hand.
    """

    def start_epoch(self, epoch: int) -> None:
        """Told each epoch's number before it begins."""


class FixedPrompt(Prompt):
    """Constant text features, encoded once: text [K,D] (one prompt a class) or [K,M,D] (M may be 0)."""

    def __init__(self, text: torch.Tensor):
        super().__init__()
        self.register_buffer("text", text.detach())

    def forward(self, names: Sequence[str], classes: torch.Tensor,
                regions: torch.Tensor | None = None) -> torch.Tensor:
        return self.text[classes]


class SelectedPrompt(Prompt):
    """POLE's prompt class learning: per image and class the candidate nearest to the masked image (eq. 6).

    With `reselect_every` N > 0, each step's own foreground features choose anew in epochs 0, N, 2N, ...
    """

    def __init__(self, clip: CLIP, template: str, candidates: list[list[str]], reselect_every: int = 0):
        super().__init__()
        text = [encode_words(clip, template, row) for row in candidates]
        self.register_buffer("text", nn.utils.rnn.pad_sequence(text, batch_first=True))
        self.candidates, self.reselect_every, self.refresh = candidates, reselect_every, False
        self.choices: dict[str, dict[int, list[float]]] = {}

    def start_epoch(self, epoch: int) -> None:
        self.refresh = self.reselect_every > 0 and epoch % self.reselect_every == 0

    @torch.no_grad()
    def select(self, names: Sequence[str], classes: torch.Tensor, regions: torch.Tensor) -> None:
        """Record the cosine of each pair's region features [N,D] with all candidates; the highest wins."""
        cosines = (F.normalize(regions.float(), dim=-1)[:, None] * self.text[classes]).sum(dim=-1)
        for name, k, row in zip(names, classes.tolist(), cosines.tolist()):
            self.choices.setdefault(name, {})[k] = row[:len(self.candidates[k])]

    def chosen(self, name: str, k: int) -> int:
        """Index of the chosen candidate of class k in image `name`; the class's own name is 0."""
        if k not in self.choices.get(name, {}):
            raise InputError(f"image {name}: no word was selected for class {self.candidates[k][0]!r}; "
                             "its baseline CAM is missing")
        row = self.choices[name][k]
        return row.index(max(row))

    def forward(self, names: Sequence[str], classes: torch.Tensor,
                regions: torch.Tensor | None = None) -> torch.Tensor:
        if self.refresh and regions is not None:
            self.select(names, classes, regions)
        picks = [self.chosen(name, k) for name, k in zip(names, classes.tolist())]
        return self.text[classes, torch.tensor(picks, dtype=torch.long, device=classes.device)]

    def report(self, classes: list[str]) -> dict:
        """Readable table: image -> class -> chosen word and the similarity of every candidate."""
        table = {}
        for name, rows in sorted(self.choices.items()):
            for k, row in sorted(rows.items()):
                similarity = {word: round(value, 4) for word, value in zip(self.candidates[k], row)}
                word = self.candidates[k][self.chosen(name, k)]
                table.setdefault(name, {})[classes[k]] = {"word": word, "similarity": similarity}
        return table

    def load_report(self, table: dict, classes: list[str]) -> None:
        """Take choices from such a table (--prompts); InputError where it has other candidates."""
        for name, rows in table.items():
            for label, entry in rows.items():
                if label not in classes or list(entry["similarity"]) != self.candidates[classes.index(label)]:
                    raise InputError(f"--prompts: image {name}, class {label!r} was selected from other "
                                     "candidates; select again without --prompts")
                self.choices.setdefault(name, {})[classes.index(label)] = list(entry["similarity"].values())

    def get_extra_state(self) -> dict:
        return self.choices

    def set_extra_state(self, state: dict) -> None:
        self.choices = state


class LearnedPrompt(Prompt):
    """Prompts with learned vectors; `template` says which positions are words and which are learned.

    [S*n] is n vectors shared by all classes, [C*n] n vectors of each class's own, {} the class's name, all
    else literal words: "[S*16] {}." is CoOp (IJCV 2022), "a photo of [C*1]." POLE's target-only row,
    "[S*16] [C*1]." DeFo (arXiv 2210.04287), "[C*30]" SemPLeS' background prompt (sec. 3.3). [S*n] starts from
    words of `init`, other vectors are drawn from N(0, 0.02^2). Gradients reach `vectors` alone.
    """

    def __init__(self, clip: CLIP, template: str, names: list[str], init: str = ""):
        super().__init__()
        self.template, self.names = template, list(names)
        self.clip = [clip]  # in a list: CLIP's weights are not this module's
        # [S*0] ends the last text, so that each is followed by a mark.
        texts, kinds, counts = (MARK.split(template + "[S*0]")[part:-1:3] for part in range(3))
        counts = [int(count) for count in counts]
        n_shared, n_own = (sum(n for n, kind in zip(counts, kinds) if kind == wanted) for wanted in "SC")
        if n_shared + n_own == 0:
            raise InputError(f"--template {template!r}: nothing to learn; "
                             "write [S*n] (shared) or [C*n] (per class)")
        start, end = tokenize("")[0, :2].tolist()
        rows = []  # of each class: (token, slot) by position; slot is -1 for a word, else a row of `vectors`
        for k, name in enumerate(names):
            row, slot = [(start, -1)], {"S": 0, "C": n_shared + k * n_own}
            for text, kind, count in zip(texts, kinds, counts):
                row += [(token, -1) for token in encode(text.replace("{}", name))]
                row += [(start, slot[kind] + i) for i in range(count)]
                slot[kind] += count
            rows.append([*row, (end, -1)])
        length = max(map(len, rows))
        if length > clip.context_length:
            raise InputError(f"--template {template!r}: {length} tokens with its start and end, "
                             f"but this CLIP reads {clip.context_length}")
        table = torch.tensor([row + [(start, -1)] * (length - len(row)) for row in rows])
        ends = torch.tensor([len(row) - 1 for row in rows])
        words = self._embed(table[..., 0])
        vectors = 0.02 * torch.randn(n_shared + n_own * len(names), words.shape[-1])
        if given := encode(init)[:n_shared]:
            vectors[:len(given)] = self._embed(torch.tensor([given]))[0].cpu()
        self.vectors = nn.Parameter(vectors.to(words.device))
        for name, value in (("words", words), ("slots", table[..., 1]), ("ends", ends)):
            self.register_buffer(name, value.to(words.device), persistent=False)

    @torch.no_grad()
    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        try:
            return self.clip[0].embed_tokens(tokens.to(self.clip[0].text_projection.device))
        except ValueError as error:  # a word that a small CLIP does not know
            raise InputError(f"template {self.template!r}: {error}") from error

    def features(self) -> torch.Tensor:
        """Normalised text features [K,D] of the present vectors."""
        learned = self.vectors[self.slots.clamp(min=0)]
        embeddings = torch.where(self.slots[..., None] >= 0, learned, self.words)
        return F.normalize(self.clip[0].encode_text_embeddings(embeddings, self.ends), dim=-1)

    @torch.no_grad()
    def save(self, path: Path) -> torch.Tensor:
        """The text features [K,D], written with vectors, template and names for later runs."""
        text = self.features()
        save_atomic({"template": self.template, "names": self.names, "text": text.cpu(),
                     "vectors": self.vectors.detach().cpu()}, path)
        return text

    def forward(self, names: Sequence[str], classes: torch.Tensor,
                regions: torch.Tensor | None = None) -> torch.Tensor:
        return self.features()[classes]


def read_learned(path: Path, clip: CLIP, n_classes: int | None = None) -> tuple[list[str], torch.Tensor]:
    """Names and text features [K,D] of a file of learned prompts; InputError if it does not fit."""
    stored, dim = load_weights(path), clip.text_projection.shape[1]
    text = stored.get("text", torch.empty(0))
    if text.shape != (n_classes or len(text), dim):
        of = f"of {n_classes} classes " if n_classes else ""
        raise InputError(f"{path}: not learned prompts {of}for this CLIP ({dim} dimensions)")
    return stored["names"], text.to(clip.text_projection.device)
