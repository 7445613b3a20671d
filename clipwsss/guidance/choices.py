"""POLE's prompt class learning: for each image and class, the candidate word nearest to the masked image."""
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip import CLIP
from ..datasets import TagDataset
from ..datasets.loaders import size_loader
from ..distributed import gather
from ..errors import InputError, input_errors
from ..progress import Progress
from .regions import cam_file_regions
from .words import encode_words

Similarities = dict[str, dict[int, list[float]]]  # image name -> class -> cosine of every candidate
Truth = dict[str, dict[str, list[str]]]  # image name -> class -> the words that are right for it


class WordChoices:
    """How similar every image's regions are to the candidates of its classes; the most similar is chosen.

    text [K,M,D] holds the features of each class's candidates, padded with zeros to the longest list, and
    `similarities` what has been measured so far. The class's own name is candidate 0.
    """

    def __init__(self, clip: CLIP, template: str, candidates: list[list[str]]):
        features = [encode_words(clip, template, words) for words in candidates]
        self.text = nn.utils.rnn.pad_sequence(features, batch_first=True)
        self.candidates = candidates
        self.similarities: Similarities = {}
        self.fresh: Similarities = {}

    @torch.no_grad()
    def measure(self, names: Sequence[str], classes: Tensor, regions: Tensor) -> None:
        """Keep the cosines of N regions' features [N,D] with all candidates (POLE eq. 6).

        names: the image of each region; classes [N].
        """
        cosines = (F.normalize(regions.float(), dim=-1)[:, None] * self.text[classes]).sum(dim=-1)
        for name, k, row in zip(names, classes.tolist(), cosines.tolist()):
            self.fresh.setdefault(name, {})[k] = row[:len(self.candidates[k])]
        self.add(self.fresh)

    def share(self) -> None:
        """Let every process know what each has measured since the last call."""
        for measured in gather(self.fresh):
            self.add(measured)
        self.fresh = {}

    def add(self, measured: Similarities) -> None:
        """Take similarities that were measured elsewhere."""
        for name, by_class in measured.items():
            self.similarities.setdefault(name, {}).update(by_class)

    def chosen(self, name: str, k: int) -> int:
        """The index of the chosen candidate of class k in an image; InputError where nothing was measured."""
        if k not in self.similarities.get(name, {}):
            raise InputError(f"image {name}: no word was chosen for class {self.candidates[k][0]!r}, because "
                             "its CAM file is missing")
        cosines = self.similarities[name][k]
        return cosines.index(max(cosines))

    def chosen_text(self, names: Sequence[str], classes: Tensor) -> Tensor:
        """Features [N,D] of the chosen words of N pairs of image and class; classes [N]."""
        picks = [self.chosen(name, k) for name, k in zip(names, classes.tolist())]
        return self.text[classes, torch.tensor(picks, dtype=torch.long, device=classes.device)]

    def table(self, classes: Sequence[str]) -> dict:
        """What prompts.json holds: image -> class -> chosen word and the similarity of every candidate."""
        table: dict[str, dict] = {}
        for name, by_class in sorted(self.similarities.items()):
            for k, cosines in sorted(by_class.items()):
                similarity = {word: round(value, 4) for word, value in zip(self.candidates[k], cosines)}
                word = self.candidates[k][self.chosen(name, k)]
                table.setdefault(name, {})[classes[k]] = {"word": word, "similarity": similarity}
        return table

    def take_table(self, table: dict, classes: Sequence[str]) -> None:
        """Take the choices of such a table (--prompts); InputError where it has other candidates."""
        for name, by_class in table.items():
            for label, entry in by_class.items():
                words = self.candidates[classes.index(label)] if label in classes else None
                if list(entry["similarity"]) != words:
                    raise InputError(f"--prompts: the word of image {name}, class {label!r} was chosen from "
                                     "other candidates; choose again without --prompts")
                self.add({name: {classes.index(label): list(entry["similarity"].values())}})

    def state_dict(self) -> dict:
        """What a checkpoint keeps."""
        return {"similarities": self.similarities}

    def load_state_dict(self, state: dict) -> None:
        """Take what a checkpoint kept."""
        self.similarities = state["similarities"]


def select_words(clip: CLIP, dataset: TagDataset, cams: Path, choices: WordChoices, batch_size: int,
                 workers: int) -> None:
    """Choose a word for each image and class of a data set by the regions of its CAM files (POLE eq. 6)."""
    device = clip.text_projection.device
    progress = Progress("selecting words", len(dataset))
    for batch in size_loader(dataset, batch_size, workers):
        with torch.inference_mode():
            regions = cam_file_regions(clip, cams, batch, device, with_background=False)
        choices.measure(regions.names, regions.classes, regions.foreground)
        progress.update(len(batch.names))
    progress.close()
    choices.share()


def read_choices(path: Path) -> dict:
    """A run's prompts.json: image -> class -> chosen word and similarities; InputError on another file."""
    with input_errors(f"{path}: not the prompts.json of a run with --class-prompt word: ",
                      OSError, ValueError, AttributeError, TypeError, KeyError):
        table = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for rows in table.values() for entry in rows.values()]
        if not entries or any(entry["word"] not in entry["similarity"] for entry in entries):
            raise ValueError("it holds no chosen words")
    return table


def count_choices(tables: Iterable[tuple[dict, Truth | None]]) -> dict[str, Counter]:
    """class -> number of choices: its `own` name, a word that is `true` for the image, an `other` word."""
    counts: dict[str, Counter] = {}
    for table, truth in tables:
        for name, rows in table.items():
            for label, entry in rows.items():
                own_name = next(iter(entry["similarity"]))
                if truth and entry["word"] in truth[name].get(label, []):
                    kind = "true"
                elif entry["word"] == own_name:
                    kind = "own"
                else:
                    kind = "other"
                counts.setdefault(label, Counter())[kind] += 1
    return dict(sorted(counts.items()))


def own_name_shares(table: dict, classes: Sequence[str]) -> str:
    """One line that says how often each class's own name was chosen in a table of choices."""
    counts = count_choices([(table, None)])
    return ", ".join(f"{label} {100 * counts[label]['own'] / counts[label].total():.0f}%"
                     for label in classes if label in counts)
