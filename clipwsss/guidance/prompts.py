"""What stands for a class or its background: prompts that give text features in one call."""
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip import CLIP, tokenize
from ..clip.tokenizer import encode
from ..distributed import gather
from ..errors import InputError, input_errors
from ..files import read_network, save_network

SLOT = re.compile(r"\[([SC])(?:\*(\d+)|:([^\]]*))\]")
# How vectors that no word starts are drawn: CoOp's way, and that of SemPLeS' release.
STARTS = {"normal": lambda *shape: 0.02 * torch.randn(*shape), "uniform": torch.rand}


@torch.no_grad()
def encode_words(clip: CLIP, template: str, words: Sequence[str]) -> Tensor:
    """Normalised text features [len(words),D] of `template` with each word for its {}; [0,D] for no words."""
    device = clip.text_projection.device
    if not words:
        return torch.empty(0, clip.text_projection.shape[1], device=device)
    if "{}" not in template:
        raise InputError(f"--template {template!r}: write {{}} for the class, as in 'a photo of {{}}.'")
    with input_errors(f"template {template!r}: "):  # too long, or a word that a small CLIP does not know
        tokens = tokenize([template.replace("{}", word) for word in words])
        return F.normalize(clip.encode_text(tokens.to(device)), dim=-1)


# Image names, classes [N] and features [N,D] of regions, batch by batch.
CamRegions = Callable[[], Iterable[tuple[Sequence[str], Tensor, Tensor]]]
Learn = Callable[["LearnedPrompt"], None]


class Prompt(nn.Module):
    """What every prompt answers, so that the training loop knows no methods.

    `prompt(names, classes, regions)` gives text features [N,D] (or [N,M,D] of M prompts a class) for N pairs
    of images (their `names`) and classes [N]; `regions` [N,D] are the pairs' foreground features, if at hand.
    """

    def make_ready(self, cam_regions: CamRegions | None, learn: Learn) -> None:
        """Choose or learn what has to be known before the generator is tuned.

        cam_regions() gives the features of the baseline CAMs' regions in batches; learn(prompt) trains the
        vectors of a LearnedPrompt with the generator fixed.
        """

    def start_epoch(self, epoch: int) -> None:
        """Told each epoch's number before it begins."""


class FixedPrompt(Prompt):
    """Constant text features, encoded once: text [K,D] (one prompt a class) or [K,M,D] (M may be 0)."""

    def __init__(self, text: Tensor):
        super().__init__()
        self.register_buffer("text", text.detach())

    def forward(self, names: Sequence[str], classes: Tensor, regions: Tensor | None = None) -> Tensor:
        return self.text[classes]


class SelectedPrompt(Prompt):
    """POLE's prompt class learning: per image and class the candidate nearest to the masked image (eq. 6).

    With `reselect_every` N > 0, each step's own foreground features choose anew in epochs 0, N, 2N, ...
    """

    def __init__(self, clip: CLIP, template: str, candidates: list[list[str]], reselect_every: int = 0):
        super().__init__()
        text = [encode_words(clip, template, words) for words in candidates]
        self.register_buffer("text", nn.utils.rnn.pad_sequence(text, batch_first=True))
        self.candidates, self.reselect_every, self.refresh = candidates, reselect_every, False
        self.choices: dict[str, dict[int, list[float]]] = {}
        self.fresh: dict[str, dict[int, list[float]]] = {}  # chosen here since all processes shared theirs

    def make_ready(self, cam_regions: CamRegions | None, learn: Learn) -> None:
        if not self.choices:
            for names, classes, regions in cam_regions():
                self.select(names, classes, regions)
            self.share_choices()

    def start_epoch(self, epoch: int) -> None:
        self.refresh = self.reselect_every > 0 and epoch % self.reselect_every == 0

    def end_epoch(self, epoch: int) -> None:
        self.share_choices()

    def share_choices(self) -> None:
        """Let every process know what each has chosen."""
        for choices in gather(self.fresh):
            for name, by_class in choices.items():
                self.choices.setdefault(name, {}).update(by_class)
        self.fresh = {}

    @torch.no_grad()
    def select(self, names: Sequence[str], classes: Tensor, regions: Tensor) -> None:
        """Record the cosine of each pair's region features [N,D] with all candidates; the highest wins."""
        cosines = (F.normalize(regions.float(), dim=-1)[:, None] * self.text[classes]).sum(dim=-1)
        for name, k, row in zip(names, classes.tolist(), cosines.tolist()):
            for choices in (self.choices, self.fresh):
                choices.setdefault(name, {})[k] = row[:len(self.candidates[k])]

    def chosen(self, name: str, k: int) -> int:
        """Index of the chosen candidate of class k in image `name`; the class's own name is 0."""
        if k not in self.choices.get(name, {}):
            raise InputError(f"image {name}: no word was selected for class {self.candidates[k][0]!r}; "
                             "its baseline CAM is missing")
        cosines = self.choices[name][k]
        return cosines.index(max(cosines))

    def forward(self, names: Sequence[str], classes: Tensor, regions: Tensor | None = None) -> Tensor:
        if self.refresh and regions is not None:
            self.select(names, classes, regions)
        picks = [self.chosen(name, k) for name, k in zip(names, classes.tolist())]
        return self.text[classes, torch.tensor(picks, dtype=torch.long, device=classes.device)]

    def report(self, classes: list[str]) -> dict:
        """Readable table: image -> class -> chosen word and the similarity of every candidate."""
        table: dict[str, dict] = {}
        for name, by_class in sorted(self.choices.items()):
            for k, cosines in sorted(by_class.items()):
                similarity = {word: round(value, 4) for word, value in zip(self.candidates[k], cosines)}
                word = self.candidates[k][self.chosen(name, k)]
                table.setdefault(name, {})[classes[k]] = {"word": word, "similarity": similarity}
        return table

    def load_report(self, table: dict, classes: list[str]) -> None:
        """Take choices from such a table (--prompts); InputError where it has other candidates."""
        for name, by_class in table.items():
            for label, entry in by_class.items():
                words = self.candidates[classes.index(label)] if label in classes else None
                if list(entry["similarity"]) != words:
                    raise InputError(f"--prompts: image {name}, class {label!r} was selected from other "
                                     "candidates; select again without --prompts")
                self.choices.setdefault(name, {})[classes.index(label)] = list(entry["similarity"].values())

    def get_extra_state(self) -> dict:
        return self.choices

    def set_extra_state(self, state: dict) -> None:
        self.choices = state


class Slot(NamedTuple):
    """Learned vectors in a template: `own` to each class or shared; `count` of them, or begun by `words`."""
    own: bool
    count: int
    words: str | None


def parse_template(template: str) -> list[str | Slot]:
    """A template as literal texts and slots in turn (LearnedPrompt says how they are written)."""
    parts, end = [], 0
    for mark in SLOT.finditer(template):
        kind, count, words = mark.groups()
        parts += [template[end:mark.start()], Slot(kind == "C", int(count or 0), words)]
        end = mark.end()
    parts.append(template[end:])
    if any(mark in part for part in parts if isinstance(part, str) for mark in "[]"):
        raise InputError(f"template {template!r}: vectors are written [S*n], [C*n] (n a whole number), "
                         "[S:words] or [C:words]")
    return parts


class LearnedPrompt(Prompt):
    """Prompts with learned vectors; `template` says which positions are words and which are learned.

    [S*n] is n vectors shared by all classes, [C*n] n vectors of each class's own, {} the class's name, all
    else literal words. [S:a photo of] and [C:{}] are as many vectors as those words have tokens and start
    from them; others are drawn as `start` says ("normal": N(0, 0.02^2), "uniform": U(0, 1)). "[S*16] {}." is
    CoOp (IJCV 2022), "a photo of [C:{}]." POLE's target-only row, "[S:a photo of] [C:{}]." DeFo (arXiv
    2210.04287), "a photo of [C*30]." SemPLeS' background prompt (sec. 3.3). Gradients reach `vectors` alone.
    """

    def __init__(self, clip: CLIP, template: str, names: list[str], start: str = "normal",
                 joint: bool = False):
        super().__init__()
        self.template, self.names, self.joint = template, list(names), joint
        self.text: Tensor | None = None  # the features once they are fixed
        self.clip = [clip]  # in a list: CLIP's weights are not this module's
        token_start, token_end = tokenize("")[0, :2].tolist()
        parts = parse_template(template)
        layouts, given = self._layouts(parts, token_start)
        if not given:
            raise InputError(f"--template {template!r}: nothing to learn; write [S*n] (shared) or [C*n] (per "
                             "class), or [S:words] and [C:words] to start from words")
        if "{}" not in template and not any(isinstance(part, Slot) and part.own for part in parts):
            raise InputError(f"--template {template!r}: all classes read alike; write {{}} or [C*n]")
        length = max(map(len, layouts)) + 1
        if length > clip.context_length:
            raise InputError(f"--template {template!r}: {length} tokens with its start and end, "
                             f"but this CLIP reads {clip.context_length}")
        ends = torch.tensor([len(layout) for layout in layouts])
        padded = [[*layout, (token_end, -1)] + [(token_start, -1)] * (length - len(layout) - 1)
                  for layout in layouts]
        table = torch.tensor(padded)
        words = self._embed(table[..., 0])
        vectors = STARTS[start](len(given), words.shape[-1])
        known = [index for index, token in enumerate(given) if token is not None]
        if known:
            vectors[known] = self._embed(torch.tensor([[given[index] for index in known]]))[0].cpu()
        self.vectors = nn.Parameter(vectors.to(words.device))
        for name, value in (("words", words), ("slots", table[..., 1]), ("ends", ends)):
            self.register_buffer(name, value.to(words.device), persistent=False)

    def _layouts(self, parts: list[str | Slot], token_start: int) -> tuple[list, list[int | None]]:
        """Each class's (token, vector or -1) by position, and the token that each vector starts from, if any.

        Shared vectors come first among the vectors, then those of class after class.
        """
        given: list[int | None] = []

        def new_vectors(slot: Slot, name: str) -> range:
            tokens = [None] * slot.count if slot.words is None else encode(slot.words.replace("{}", name))
            given.extend(tokens)
            return range(len(given) - len(tokens), len(given))

        shared = {index: new_vectors(part, "") for index, part in enumerate(parts)
                  if isinstance(part, Slot) and not part.own}
        layouts = []
        for name in self.names:
            layout = [(token_start, -1)]
            for index, part in enumerate(parts):
                if isinstance(part, str):
                    layout += [(token, -1) for token in encode(part.replace("{}", name))]
                else:
                    vectors = shared.get(index) or new_vectors(part, name)
                    layout += [(token_start, vector) for vector in vectors]
            layouts.append(layout)
        return layouts, given

    @torch.no_grad()
    def _embed(self, tokens: Tensor) -> Tensor:
        with input_errors(f"template {self.template!r}: "):  # a word that a small CLIP does not know
            return self.clip[0].embed_tokens(tokens.to(self.clip[0].text_projection.device))

    def make_ready(self, cam_regions: CamRegions | None, learn: Learn) -> None:
        """Learn with the generator fixed, unless the vectors are learned together with it (`joint`)."""
        if not self.joint:
            learn(self)
            self.vectors.requires_grad_(False)
            self.text = self.features().detach()

    def features(self) -> Tensor:
        """Normalised text features [K,D] of the present vectors."""
        learned = self.vectors[self.slots.clamp(min=0)]
        embeddings = torch.where(self.slots[..., None] >= 0, learned, self.words)
        return F.normalize(self.clip[0].encode_text_embeddings(embeddings, self.ends), dim=-1)

    def forward(self, names: Sequence[str], classes: Tensor, regions: Tensor | None = None) -> Tensor:
        return (self.features() if self.text is None else self.text)[classes]

    @torch.no_grad()
    def save(self, path: Path) -> None:
        """The vectors, with the text features [K,D] that later runs and pictures read."""
        config = {"template": self.template, "names": self.names, "text": self.features().cpu()}
        save_network(self, "learned prompt", config, path)


class ReadPrompt(Prompt):
    """Learned prompts read as words: all classes repel the words, text [V,D], that some prompt is nearest to.

    `read` [K], once ready, has each class's word (this project's: SemPLeS' prompts make CLIMS' list).
    """

    def __init__(self, learned: Prompt, words: list[str], text: Tensor):
        super().__init__()
        self.learned, self.words, self.read = learned, words, []
        self.register_buffer("text", text)

    def make_ready(self, cam_regions: CamRegions | None, learn: Learn) -> None:
        self.learned.make_ready(cam_regions, learn)
        nearest = (self.learned.text @ self.text.T).argmax(dim=1)
        self.read = [self.words[index] for index in nearest.tolist()]
        self.text = self.text[nearest.unique()]

    def forward(self, names: Sequence[str], classes: Tensor, regions: Tensor | None = None) -> Tensor:
        return self.text.expand(len(classes), -1, -1)


def read_learned(path: Path, clip: CLIP, n_classes: int | None = None) -> tuple[list[str], Tensor]:
    """Names and text features [K,D] of a file of learned prompts; InputError if it does not fit."""
    config, _ = read_network(path, "learned prompt")
    text, dim = config["text"], clip.text_projection.shape[1]
    if text.shape != (n_classes or len(text), dim):
        of = f"of {n_classes} classes " if n_classes else ""
        raise InputError(f"{path}: not learned prompts {of}for this CLIP ({dim} dimensions)")
    return config["names"], text.to(clip.text_projection.device)
