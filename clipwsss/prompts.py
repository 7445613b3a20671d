"""What stands for a class or for its background: words from JSON, and prompts that answer one call with text features."""
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from . import clip as clip_package
from .clip import CLIP
from .errors import InputError

ASSETS = Path(__file__).parent / "assets"
MARK = re.compile(r"\[([SC])\*(\d+)\]")


class Words(NamedTuple):
    """Per class its prompt name and its candidates (the name first, then synonyms), and the background words."""
    names: list[str]
    candidates: list[list[str]]
    background: list[str]


def load_words(dataset: str, classes: list[str], synonyms: dict[str, list[str]] | None = None,
               synonyms_file: Path | str | None = None, n_synonyms: int | None = None) -> Words:
    """Words of a data set: its JSON asset where it has one, else the class names with `synonyms`.

    `synonyms_file` (JSON: class -> list of words, or the name of one of the data set's `corpora`) replaces the
    candidates of the classes it names; `n_synonyms` caps them. Without an asset the background words are CLIMS' VOC
    list less the classes' own words. InputError on a file that is no such JSON or names an unknown class.
    """
    asset = ASSETS / f"prompts_{dataset}.json"
    known = json.loads((asset if asset.exists() else ASSETS / "prompts_voc12.json").read_text())
    names = known["names"] if asset.exists() else {name: name for name in classes}
    candidates = {**(known["synonyms"] if asset.exists() else {}), **(synonyms or {})}
    if synonyms_file is not None:
        candidates.update(_read_synonyms(Path(synonyms_file), corpora(dataset), classes))
    rows = [list(dict.fromkeys([names[name], *candidates.get(name, [])[:n_synonyms]])) for name in classes]
    taken = {word for row in rows for word in row}
    return Words([names[name] for name in classes], rows, [word for word in known["background"] if word not in taken])


def corpora(dataset: str) -> dict[str, dict[str, list[str]]]:
    """The built-in lists of candidates of a data set by name, the default one first: name -> class -> words."""
    files = [path for path in (ASSETS / f"prompts_{dataset}.json", *sorted(ASSETS.glob(f"synonyms_{dataset}_*.json")))
             if path.exists()]
    tables = [json.loads(path.read_text()) for path in files]
    return {table.get("corpus", "default"): table["synonyms"] for table in tables}


def _read_synonyms(path: Path, built_in: dict[str, dict[str, list[str]]], classes: list[str]) -> dict[str, list[str]]:
    if not path.is_file():
        if str(path) in built_in:
            return built_in[str(path)]
        raise InputError(f"--synonyms {path}: no such file, nor a built-in list of this data set "
                         f"({', '.join(built_in) or 'it has none'})")
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(table, dict) or not all(isinstance(row, list) and all(isinstance(word, str) for word in row)
                                              for row in table.values()):
        raise InputError(f'{path}: expected an object of lists of words, such as {{"{classes[0]}": ["word", "word"]}}')
    for name in table:
        if name not in classes:
            raise InputError(f"{path}: unknown class {name!r}; the classes are {', '.join(classes)}")
    return table


@torch.no_grad()
def encode_words(clip: CLIP, template: str, words: Sequence[str]) -> torch.Tensor:
    """Normalised text features [len(words), D] of `template` with {} replaced by each word; [0, D] for no words."""
    device = next(clip.parameters()).device
    if not words:
        return torch.empty(0, clip.text_projection.shape[1], device=device)
    try:
        tokens = clip_package.tokenize([template.replace("{}", word) for word in words])
        return F.normalize(clip.encode_text(tokens.to(device)), dim=-1)
    except ValueError as error:  # a text too long, or a word that a small CLIP does not know
        raise InputError(f"template {template!r}: {error}") from error


class Prompt(nn.Module):
    """What every prompt answers: `prompt(names, classes, regions)`, so that the training loop knows no methods."""

    def start_epoch(self, epoch: int) -> None:
        """Told each epoch's number before it begins."""


class FixedPrompt(Prompt):
    """Constant text features, encoded once: text [K,D] (one prompt a class) or [K,M,D] (M prompts; M may be 0)."""

    def __init__(self, text: torch.Tensor):
        super().__init__()
        self.register_buffer("text", text.detach())

    def forward(self, names: Sequence[str], classes: torch.Tensor, regions: torch.Tensor | None = None) -> torch.Tensor:
        """Text features of N (image, class) pairs: `names` of their images, `classes` [N], foreground features [N,D].

        Returns [N,D] or [N,M,D].
        """
        return self.text[classes]


class SelectedPrompt(Prompt):
    """POLE's prompt class learning: per image and class the candidate word nearest to the masked image (eq. 6).

    With `reselect_every` N > 0, in epochs 0, N, 2N, ... each step's own foreground features choose anew: no second pass.
    """

    def __init__(self, clip: CLIP, template: str, candidates: list[list[str]], reselect_every: int = 0):
        super().__init__()
        longest = max(map(len, candidates))
        text = torch.stack([F.pad(encode_words(clip, template, row), (0, 0, 0, longest - len(row)))
                            for row in candidates])
        self.register_buffer("text", text)
        self.candidates = candidates
        self.reselect_every, self.refresh = reselect_every, False
        self.choices: dict[str, dict[int, list[float]]] = {}

    def start_epoch(self, epoch: int) -> None:
        self.refresh = self.reselect_every > 0 and epoch % self.reselect_every == 0

    @torch.no_grad()
    def select(self, names: Sequence[str], classes: torch.Tensor, regions: torch.Tensor) -> None:
        """Record the cosine of each pair's region features [N,D] with all its candidates; the highest is its word."""
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

    def forward(self, names: Sequence[str], classes: torch.Tensor, regions: torch.Tensor | None = None) -> torch.Tensor:
        """As FixedPrompt.forward; in re-selecting epochs the words follow `regions`."""
        if self.refresh and regions is not None:
            self.select(names, classes, regions)
        picks = [self.chosen(name, k) for name, k in zip(names, classes.tolist())]
        return self.text[classes, torch.tensor(picks, dtype=torch.long, device=classes.device)]

    def report(self, classes: list[str]) -> dict:
        """Readable table: image -> class -> chosen word and the similarity of every candidate."""
        return {name: {classes[k]: {"word": self.candidates[k][self.chosen(name, k)],
                                    "similarity": {word: round(value, 4) for word, value
                                                   in zip(self.candidates[k], row)}}
                       for k, row in sorted(rows.items())} for name, rows in sorted(self.choices.items())}

    def load_report(self, table: dict, classes: list[str]) -> None:
        """Take choices from such a table (a --prompts file); InputError where it does not fit these candidates."""
        for name, rows in table.items():
            for label, entry in rows.items():
                if label not in classes or list(entry["similarity"]) != self.candidates[classes.index(label)]:
                    raise InputError(f"--prompts: image {name}, class {label!r} was selected from other candidates; "
                                     "select again without --prompts")
                self.choices.setdefault(name, {})[classes.index(label)] = list(entry["similarity"].values())

    def get_extra_state(self) -> dict:
        return self.choices

    def set_extra_state(self, state: dict) -> None:
        self.choices = state


class LearnedPrompt(Prompt):
    """Prompts with learned vectors: one template language says which positions are words and which are learned.

    In `template`, [S*n] is n vectors shared by all classes, [C*n] n vectors of each class's own, {} the class's name,
    all else literal words: "[S*16] {}." is CoOp (IJCV 2022), "a photo of [C*1]." POLE's target-only row, "[S*16] [C*1]."
    DeFo (arXiv 2210.04287), "[C*30]" SemPLeS' background prompt (sec. 3.3). `init` gives words that [S*n] starts from;
    otherwise vectors are drawn from N(0, std^2). Gradients reach `vectors` alone: CLIP is frozen.
    """

    def __init__(self, clip: CLIP, template: str, names: list[str], init: str = "", std: float = 0.02):
        super().__init__()
        self.template, self.names = template, list(names)
        parts = MARK.split(template)
        n_shared = sum(int(n) for kind, n in zip(parts[1::3], parts[2::3]) if kind == "S")
        n_class = sum(int(n) for kind, n in zip(parts[1::3], parts[2::3]) if kind == "C")
        if n_shared + n_class == 0:
            raise InputError(f"--template {template!r}: nothing to learn; write [S*n] (shared) or [C*n] (per class)")
        rows = [self._layout(template, name, k, n_shared, n_class) for k, name in enumerate(names)]
        length = max(len(row) for row in rows)
        if length > clip.context_length:
            raise InputError(f"--template {template!r}: {length} tokens with its start and end, but this CLIP reads "
                             f"{clip.context_length}")
        table = torch.tensor([row + [(0, -1)] * (length - len(row)) for row in rows])
        device = next(clip.parameters()).device
        start = torch.tensor([row[0][0] for row in rows])
        tokens = torch.where(torch.arange(length) < torch.tensor([[len(row)] for row in rows]), table[..., 0],
                             start[:, None])
        with torch.no_grad():
            words = clip.embed_tokens(tokens.to(device))
        self.register_buffer("words", words, persistent=False)
        self.register_buffer("slots", table[..., 1].to(device), persistent=False)
        self.register_buffer("ends", torch.tensor([len(row) - 1 for row in rows], device=device), persistent=False)
        vectors = torch.randn(n_shared + n_class * len(names), words.shape[-1]) * std
        if init:
            given = clip.embed_tokens(clip_package.tokenize(init)[:, 1:].to(device))[0][:n_shared]
            count = min(n_shared, len(clip_package.tokenize(init)[0].nonzero()) - 2)
            vectors[:count] = given[:count].cpu()
        self.vectors = nn.Parameter(vectors.to(device))
        self.clip = [clip]  # in a list: CLIP's weights are not this module's

    @staticmethod
    def _layout(template: str, name: str, k: int, n_shared: int, n_class: int) -> list[tuple[int, int]]:
        """(token, slot) of each position of one class's prompt; slot is -1 for a word, else a row of `vectors`."""
        start, *_ = clip_package.tokenize("")[0].tolist()
        end = clip_package.tokenize("")[0].max().item()
        row, shared, own = [(start, -1)], 0, n_shared + k * n_class
        parts = MARK.split(template)
        for index in range(0, len(parts), 3):
            ids = clip_package.tokenize(parts[index].replace("{}", name))[0].tolist()
            row += [(token, -1) for token in ids[1:ids.index(end)]]
            if index + 1 < len(parts):
                count = int(parts[index + 2])
                first = shared if parts[index + 1] == "S" else own
                row += [(start, first + i) for i in range(count)]
                shared, own = (shared + count, own) if parts[index + 1] == "S" else (shared, own + count)
        return row + [(end, -1)]

    def features(self) -> torch.Tensor:
        """Normalised text features [K,D] of the present vectors."""
        learned = self.vectors[self.slots.clamp(min=0)]
        embeddings = torch.where(self.slots[..., None] >= 0, learned, self.words)
        return F.normalize(self.clip[0].encode_text_embeddings(embeddings, self.ends), dim=-1)

    def forward(self, names: Sequence[str], classes: torch.Tensor, regions: torch.Tensor | None = None) -> torch.Tensor:
        """As FixedPrompt.forward, with gradients to the vectors."""
        return self.features()[classes]
