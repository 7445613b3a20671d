"""POLE's prompt class learning: for each image and class, the candidate word nearest to the masked image.

How often each class's own name was chosen, as a table and a radar picture (POLE Fig. 4):

    python -m clipwsss.guidance.choices runs/voc12/train_prompt/prompts.json
"""
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip import CLIP
from ..datasets import TagDataset, build_dataset
from ..datasets.loaders import size_loader
from ..distributed import gather
from ..errors import InputError, input_errors, run_script
from ..files import read_json, write_json
from ..flags import Parser
from ..pictures import save
from ..progress import Progress
from ..report.charts import radar
from .regions import cam_file_regions
from .words import ASSETS, encode_words

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
            own = row[:len(self.candidates[k])]  # without the padding
            self.similarities.setdefault(name, {})[k] = own
            self.fresh.setdefault(name, {})[k] = own

    def share(self) -> None:
        """Let every process know what each has measured since the last call."""
        for measured in gather(self.fresh):
            for name, by_class in measured.items():
                self.similarities.setdefault(name, {}).update(by_class)
        self.fresh = {}

    def chosen_text(self, names: Sequence[str], classes: Tensor) -> Tensor:
        """Features [N,D] of the chosen words of N pairs of image and class; classes [N].

        InputError names an image and class for which nothing was measured.
        """
        chosen = []
        for name, k in zip(names, classes.tolist()):
            if k not in self.similarities.get(name, {}):
                raise InputError(f"image {name}: no word was chosen for class {self.candidates[k][0]!r}; "
                                 "its CAM file, or its entry in --prompts, is missing")
            cosines = self.similarities[name][k]
            chosen.append(cosines.index(max(cosines)))
        return self.text[classes, torch.tensor(chosen, dtype=torch.long, device=classes.device)]

    def table(self, classes: Sequence[str]) -> dict:
        """What prompts.json holds: image -> class -> chosen word and the similarity of every candidate."""
        table: dict[str, dict] = {}
        for name, by_class in sorted(self.similarities.items()):
            for k, cosines in sorted(by_class.items()):
                similarity = {word: round(value, 4) for word, value in zip(self.candidates[k], cosines)}
                word = self.candidates[k][cosines.index(max(cosines))]
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
                cosines = list(entry["similarity"].values())
                self.similarities.setdefault(name, {})[classes.index(label)] = cosines

    def state_dict(self) -> dict:
        """What a checkpoint keeps: the choices of all processes, each of which must call this."""
        self.share()
        return {"similarities": self.similarities}

    def load_state_dict(self, state: dict) -> None:
        """Take what a checkpoint kept."""
        self.similarities = state["similarities"]


def select_words(clip: CLIP, dataset: TagDataset, cams: Path, choices: WordChoices, batch_size: int,
                 workers: int) -> None:
    """Choose a word for each image and class of a data set by the regions of its CAM files (POLE eq. 6).

    CLIP sees images as it was trained on, because POLE's release chooses words so, unlike in its training.
    """
    device = clip.text_projection.device
    progress = Progress("selecting words", len(dataset))
    for batch in size_loader(dataset, batch_size, workers):
        with torch.inference_mode():
            regions = cam_file_regions(clip, cams, batch, device, with_background=False)
        choices.measure(regions.names, regions.classes, regions.foreground)
        progress.update(len(batch.names))
    progress.close()
    choices.share()


def save_choices(choices: WordChoices, classes: Sequence[str], path: Path) -> None:
    """Write prompts.json and print how often each class's own name was chosen."""
    table = choices.table(classes)
    write_json(table, path)
    shares = []
    for label in classes:
        entries = [rows[label] for rows in table.values() if label in rows]
        own = sum(entry["word"] == next(iter(entry["similarity"])) for entry in entries)
        if entries:
            shares.append(f"{label} {100 * own / len(entries):.0f}%")
    print(f"own name chosen: {', '.join(shares)} (all choices: {path})")


def read_choices(path: Path) -> dict:
    """A run's prompts.json: image -> class -> chosen word and similarities; InputError on another file."""
    expected = "not the prompts.json of a run with --class-prompt word"
    try:
        table = read_json(path)
    except InputError as error:
        raise InputError(f"{path}: {expected} ({str(error).removeprefix(f'{path}: ')})") from error
    with input_errors(f"{path}: {expected}: ", ValueError, AttributeError, TypeError, KeyError):
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


def toy_truth(root: Path, split: str) -> Truth:
    """The sub-types in every image of a toy world."""
    dataset = build_dataset("toy", root, split)
    return {name: dataset.subtypes(index) for index, name in enumerate(dataset.names)}


def released_shares(classes: Iterable[str]) -> dict[str, float]:
    """Shares of own names, in percent, in the choices that POLE's authors released; {} for other classes."""
    shares = read_json(ASSETS / "prompts_voc12.json")["released_own_share"]
    return shares if set(classes) <= set(shares) else {}


def person_itself(tables: Sequence[tuple[dict, Truth | None]]) -> str:
    """A line that says how often "person" was chosen where the class's prompt name is another word."""
    entries = [rows["person"] for table, _ in tables for rows in table.values() if "person" in rows]
    if not entries:
        return ""
    name = next(iter(entries[0]["similarity"]))
    if name == "person":
        return ""
    share = 100 * sum(entry["word"] == "person" for entry in entries) / len(entries)
    return (f'\nThe prompt name of the class person is "{name}"; the word "person" was chosen for '
            f"{share:.1f} % (POLE's release: 27.1 %).\n")


def report(tables: Sequence[tuple[dict, Truth | None]], picture: Path) -> str:
    """Markdown of the shares of each class, of the choices of all tables together, and a `picture` (PNG)."""
    counts = count_choices(tables)
    if all(truth is not None for _, truth in tables):
        kinds = {"own": "own name", "true": "true sub-type", "other": "wrong word"}
        released = {}
    else:
        kinds = {"own": "own name", "other": "a synonym"}
        released = released_shares(counts)
    titles = [f"{title} %" for title in kinds.values()]
    if released:
        titles.append("own name %, POLE's release")
    lines = [f"| class | choices | {' | '.join(titles)} |", "|---|" + "---|" * (1 + len(titles))]
    for label, row in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        cells = [label, str(row.total())]
        cells += [f"{100 * row[kind] / row.total():.0f}" for kind in kinds]
        if released:
            cells.append(f"{released[label]:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    series = {}
    for kind, title in kinds.items():
        if kind != "other":
            series[title] = [row[kind] / row.total() for row in counts.values()]
    save(radar(list(counts), series), picture)
    return "\n".join(lines) + "\n" + person_itself(tables)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m clipwsss.guidance.choices",
                    description="Count how often each class's own name was the word that "
                    "CLIP selected, and\ndraw the shares as a radar picture (POLE Fig. 4).")
    parser.add_argument("prompts", type=Path, nargs="+",
                        help="prompts.json of runs with --class-prompt word, counted together; the picture "
                        "own_names.png is written beside the first")
    args = parser.parse_args(argv)
    out = args.prompts[0].with_name("own_names.png")
    print(f"{report([(read_choices(path), None) for path in args.prompts], out)}\npicture: {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
