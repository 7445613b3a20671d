"""POLE's released choices of words as a prompts.json, which `train_prompt.py --prompts` takes.

    python -m clipwsss.guidance.released_choices GPT_v2_4.json --data-root VOCdevkit/VOC2012

`assets/GPT_v2_4.json` of Ruxie189/WSS_POLE (MIT) is a pickle in spite of its name: the name of an image
without "_" -> the sentences of its classes in the order of the classes, such as ["a photo of plane.", ...].
"""
import io
import pickle
from collections.abc import Sequence
from pathlib import Path

from ..datasets import TagDataset, build_dataset
from ..errors import InputError, input_errors, run_script
from ..files import write_json
from ..flags import Parser, file_to_write
from .words import Words, load_words

BEFORE = "a photo of "  # what stands before a word in the file's sentences
AFTER = "."
NOT_THE_FILE = "not GPT_v2_4.json of POLE's release: "


class PlainValues(pickle.Unpickler):
    """Reads dictionaries, lists and texts; UnpicklingError for anything else, which might run code."""

    def find_class(self, module: str, name: str) -> None:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and plain values are expected")


def read_released(path: Path) -> dict[str, list[str]]:
    """Image name without "_" -> one sentence for each of its classes; InputError on another file."""
    with input_errors(f"{path}: ", OSError):
        content = path.read_bytes()
    with input_errors(f"{path}: {NOT_THE_FILE}", Exception):  # damaged pickles raise errors of many kinds
        table = PlainValues(io.BytesIO(content)).load()
        if not isinstance(table, dict) or not table:
            raise ValueError("it holds no dictionary of images")
        for name, sentences in table.items():
            if not isinstance(sentences, list) or not all(isinstance(text, str) for text in sentences):
                raise ValueError(f"image {name!r} has no list of sentences")
    return table


def released_table(released: dict[str, list[str]], dataset: TagDataset, words: Words) -> dict:
    """The table of prompts.json of a data set's images: image -> class -> word and similarities.

    The file does not have the similarities; that of the chosen word is written as 1, the others as 0.
    InputError: an image that is not in the file, has another number of classes there, or a word that is not
    among the candidates of its class.
    """
    table: dict[str, dict] = {}
    for index, name in enumerate(dataset.names):
        tags = dataset.labels[index].nonzero()[:, 0].tolist()
        sentences = released.get(name.replace("_", ""))
        if sentences is None:
            raise InputError(f"image {name} of the data set is not in the file")
        if len(sentences) != len(tags):
            classes = ", ".join(words.classes[k] for k in tags)
            raise InputError(f"image {name} has the classes {classes}, and {len(sentences)} sentences in the "
                             "file")
        table[name] = {}
        for k, sentence in zip(tags, sentences):
            word = sentence.removeprefix(BEFORE).removesuffix(AFTER)
            if word not in words.candidates[k]:
                raise InputError(f"image {name}: {sentence!r} has no candidate of the class "
                                 f"{words.classes[k]!r}; those are {', '.join(words.candidates[k])}")
            similarity = {candidate: float(candidate == word) for candidate in words.candidates[k]}
            table[name][words.classes[k]] = {"word": word, "similarity": similarity}
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m clipwsss.guidance.released_choices",
                    description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("released", type=Path, metavar="GPT_v2_4.json", help="the file of POLE's release")
    add("--data-root", type=Path, required=True,
        help="folder of VOC 2012, from which images and tags are read")
    add("--split", default="train_aug", help="split whose images are converted")
    add("--out", type=file_to_write(".json"), default=Path("prompts.json"),
        help="file of choices, for train_prompt.py --prompts")
    args = parser.parse_args(argv)
    released = read_released(args.released)
    dataset = build_dataset("voc12", args.data_root, args.split)
    with input_errors(f"{args.released}: ", InputError):
        table = released_table(released, dataset, load_words("voc12", dataset.classes))
    write_json(table, args.out)
    print(f"{len(table)} images; the file names the chosen words only, so that their similarity is written "
          f"as 1 and that of the others as 0\nwritten to {args.out}; use it with: python train_prompt.py "
          f"--method pole --prompts {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
