"""Words of a data set from JSON: each class's prompt name, its candidate synonyms, the background's words."""
import json
from pathlib import Path
from typing import NamedTuple

from ..datasets.tags import read_text
from ..errors import InputError, input_errors

ASSETS = Path(__file__).parents[1] / "assets"


class Words(NamedTuple):
    """Classes, each one's prompt name and candidates (the name first, then synonyms), background words."""
    classes: list[str]
    names: list[str]
    candidates: list[list[str]]
    background: list[str]

    def with_background(self, words: list[str]) -> "Words":
        """These background words, less those that stand for a class."""
        taken = {word for row in self.candidates for word in row}
        return self._replace(background=[word for word in dict.fromkeys(words) if word not in taken])


def load_words(dataset: str, classes: list[str], synonyms: dict[str, list[str]] | None = None,
               synonyms_file: Path | str | None = None, n_synonyms: int | None = None,
               person: str | None = None) -> Words:
    """Words of a data set: its JSON asset where it has one, else the class names with `synonyms`.

    `synonyms_file` (JSON: class -> list of words, or the name of one of the data set's `corpora`) replaces
    candidates of the classes it names; `n_synonyms` caps them; `person` is the prompt name of that class.
    Without an asset the background is CLIMS' VOC list less the classes' own words. InputError on a file that
    is no such JSON or names an unknown class.
    """
    asset = ASSETS / f"prompts_{dataset}.json"
    if asset.exists():
        known = json.loads(asset.read_text())
    else:
        known = json.loads((ASSETS / "prompts_voc12.json").read_text())
        known |= {"names": {name: name for name in classes}, "synonyms": synonyms or {}}
    names, synonyms = [known["names"][name] for name in classes], known["synonyms"]
    if person and "person" in classes:
        names[list(classes).index("person")] = person
    if synonyms_file is not None:
        synonyms |= _read_synonyms(Path(synonyms_file), corpora(dataset), classes)
    candidates = [list(dict.fromkeys([name, *synonyms.get(label, [])[:n_synonyms]]))
                  for name, label in zip(names, classes)]
    return Words(list(classes), names, candidates, []).with_background(known["background"])


def read_words(path: Path) -> list[str]:
    """One word or phrase a line; InputError on a missing, unreadable or empty file."""
    words = [" ".join(line.split()) for line in read_text(path).splitlines() if line.strip()]
    if not words:
        raise InputError(f"{path}: no words in it; write one word or phrase a line")
    return words


def corpora(dataset: str) -> dict[str, dict[str, list[str]]]:
    """A data set's built-in lists of candidates by name, the default one first: name -> class -> words."""
    files = [*ASSETS.glob(f"prompts_{dataset}.json"), *sorted(ASSETS.glob(f"synonyms_{dataset}_*.json"))]
    tables = [json.loads(path.read_text()) for path in files]
    return {table.get("corpus", "default"): table["synonyms"] for table in tables}


def _read_synonyms(path: Path, built_in: dict[str, dict], classes: list[str]) -> dict[str, list[str]]:
    if not path.is_file():
        if str(path) in built_in:
            return built_in[str(path)]
        raise InputError(f"--synonyms {path}: no such file, nor a built-in list of this data set "
                         f"({', '.join(built_in) or 'it has none'})")
    with input_errors(f"{path}: not a readable JSON file: ", OSError, ValueError):
        table = json.loads(path.read_text())
    rows = table.values() if isinstance(table, dict) else [None]
    if not all(isinstance(row, list) and all(isinstance(word, str) for word in row) for row in rows):
        raise InputError(f"{path}: expected an object of lists of words, "
                         f'such as {{"{classes[0]}": ["word", "word"]}}')
    for name in table:
        if name not in classes:
            raise InputError(f"{path}: unknown class {name!r}; the classes are {', '.join(classes)}")
    return table
