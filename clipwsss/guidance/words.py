"""The words of a data set: class names, synonyms and background words for prompts, and their features."""
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip import CLIP, tokenize
from ..errors import InputError, input_errors
from ..files import nfc, read_json, read_text

ASSETS = Path(__file__).parents[1] / "assets"


class Words(NamedTuple):
    """Classes with their words.

    names: each class's name in prompts. candidates: each class's name and then its synonyms, among which POLE
    chooses. background: words that the foreground must not resemble (CLIMS).
    """
    classes: list[str]
    names: list[str]
    candidates: list[list[str]]
    background: list[str]


@torch.no_grad()
def encode_words(clip: CLIP, template: str, words: Sequence[str]) -> Tensor:
    """Normalised text features [len(words),D] of the template with each word in the place of {}.

    InputError for a template without {}, and for a text that this CLIP cannot read.
    """
    device = clip.text_projection.device
    if not words:
        return torch.empty(0, clip.text_projection.shape[1], device=device)
    if "{}" not in template:
        raise InputError(f"template {template!r}: write {{}} for the class, as in 'a photo of {{}}.'")
    with input_errors(f"template {template!r}: "):  # it is too long, or a small CLIP does not know a word
        tokens = tokenize([template.replace("{}", word) for word in words])
        return F.normalize(clip.encode_text(tokens.to(device)), dim=-1)


def background_texts(clip: CLIP, template: str, listed: Sequence[str], learned: Tensor) -> Tensor:
    """The background texts of each class, [K,M,D]: the listed words in the template, and then its learned
    prompts [K,L,D]; either may be empty."""
    text = encode_words(clip, template, listed).expand(len(learned), -1, -1)
    return torch.cat([text, learned], dim=1)


def load_words(dataset: str, classes: list[str], synonyms: dict[str, list[str]] | None = None,
               synonyms_file: Path | str | None = None, n_synonyms: int | None = None,
               person: str | None = None, background: list[str] | None = None) -> Words:
    """The words of a data set: those of its JSON asset, or else its class names with `synonyms`.

    synonyms_file: a JSON file (class -> list of words) or the name of one of the data set's `corpora`, whose
    candidates replace those of the classes that it names. n_synonyms: the number of synonyms of a class that
    are used. person: the prompt name of that class. background: words in place of the data set's. A data set
    without an asset has its class names, with blanks for underscores, and CLIMS' background words for VOC;
    words that stand for one of its classes are left out (see `singular`). A list that was published for a
    data set is taken whole, as its authors did, also where a class has one of its words as a synonym.
    InputError on a file that is not such JSON or names an unknown class.
    """
    asset = ASSETS / f"prompts_{dataset}.json"
    if asset.exists():
        known = read_json(asset)
        names = [known["names"][name] for name in classes]
        synonyms = known["synonyms"]
    else:
        known = read_json(ASSETS / "prompts_voc12.json")
        names = [name.replace("_", " ") for name in classes]
        synonyms = synonyms or {}
    if person and "person" in classes:
        names[list(classes).index("person")] = person
    if synonyms_file is not None:
        synonyms = synonyms | _read_synonyms(Path(synonyms_file), corpora(dataset), classes)
    candidates = []
    for name, label in zip(names, classes):
        words = [name, *synonyms.get(label, [])[:n_synonyms]]
        candidates.append(list(dict.fromkeys(words)))
    listed = known["background"] if background is None else background
    if not asset.exists():
        taken = {singular(word) for row in candidates for word in row}
        listed = [word for word in dict.fromkeys(listed) if singular(word) not in taken]
    return Words(list(classes), names, candidates, listed)


def load_clip_words(dataset: str, classes: list[str],
                    synonyms: dict[str, list[str]] | None = None) -> tuple[list[str], list[str]]:
    """(class names, background words) for CLIP's own maps: those of CLIP-ES, or the toy world's.

    synonyms: further words of each class, which count on own data alone. Own data have their class names,
    with blanks for underscores, and CLIP-ES' list without synonyms and without words of class names, whether
    singular or plural. The latter rule gives CLIP-ES' list for COCO too, in which "keyboard" and the "sign"
    of "stop sign" are missing.
    """
    asset = ASSETS / f"prompts_{dataset}.json"
    known = read_json(asset) if asset.exists() else {}
    names = known.get("clip_names", {})
    names = [names.get(name, name.replace("_", " ")) for name in classes]
    if dataset == "toy":
        return names, known["background"]
    listed = read_json(ASSETS / "prompts_voc12.json")["clip_background"]
    taken = set()
    if not asset.exists():
        taken = {singular(word) for words in (synonyms or {}).values() for word in words}
    for name in classes:
        words = name.replace("_", " ").replace("-", " ").split()
        taken |= {singular(word) for word in (name, *words)}
    return names, [word for word in listed if singular(word) not in taken]


def singular(word: str) -> str:
    """A word as background words are compared with classes: "Street_Lamps" and "street lamp" are one."""
    return word.lower().replace("_", " ").removesuffix("s")


def read_words(path: Path) -> list[str]:
    """One word or phrase a line; InputError on a missing, unreadable or empty file."""
    words = [" ".join(line.split()) for line in read_text(path).splitlines() if line.strip()]
    if not words:
        raise InputError(f"{path}: the file holds no words; write one word or phrase a line")
    return words


def corpora(dataset: str) -> dict[str, dict[str, list[str]]]:
    """A data set's built-in lists of candidates by name, the default one first: name -> class -> words."""
    files = [*ASSETS.glob(f"prompts_{dataset}.json"), *sorted(ASSETS.glob(f"synonyms_{dataset}_*.json"))]
    tables = [read_json(path) for path in files]
    return {table.get("corpus", "default"): table["synonyms"] for table in tables}


def _read_synonyms(path: Path, built_in: dict[str, dict], classes: list[str]) -> dict[str, list[str]]:
    """The candidates of a file, or of a built-in list of this name."""
    if not path.is_file():
        if str(path) in built_in:
            return built_in[str(path)]
        lists = ", ".join(built_in) or "none for this data set"
        raise InputError(f"--synonyms {path}: there is no such file and no built-in list of this name; the "
                         f"built-in lists are: {lists}")
    table = read_json(path)
    if not isinstance(table, dict) or not all(_is_word_list(row) for row in table.values()):
        raise InputError(f"{path}: expected an object of lists of words, "
                         f'such as {{"{classes[0]}": ["word", "word"]}}')
    table = {nfc(name): row for name, row in table.items()}
    for name in table:
        if name not in classes:
            raise InputError(f"{path}: unknown class {name!r}; the classes are {', '.join(classes)}")
    return table


def _is_word_list(row: object) -> bool:
    """Whether a JSON value is a list of texts."""
    return isinstance(row, list) and all(isinstance(word, str) for word in row)
