"""Command-line flags: numbers within a range, pairs in order, CLIP's flags, parsers of one-line errors."""
import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from .errors import InputError, nearest


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help of all flags, with every default that is a value."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return action.dest.rpartition("_")[2].upper()

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False or "(default: " in action.help:
            return action.help
        if isinstance(action.default, list | tuple):  # as they are written on the command line
            values = " ".join(map(str, action.default))
            return f"{action.help} (default: {values})" if values else action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are InputErrors of one line, which names the nearest valid flag or choice."""

    def __init__(self, prog: str | None = None, **options: object):
        super().__init__(prog, formatter_class=HelpFormatter, allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None,
                   namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"{unknown[0]}: no such flag{nearest(unknown[0], self._option_string_actions)}")
        return parsed

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            valid = ", ".join(map(str, action.choices)) + nearest(value, action.choices)
            raise argparse.ArgumentError(action, f"{value!r} is not one of {valid}")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')} ({self.prog} --help lists the flags)")


class ShowEssential(argparse.Action):
    """--help of a script: print the help of the flags whose destinations are in `const`, and stop."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        for action in parser._actions:
            if action.dest not in self.const:
                action.help = argparse.SUPPRESS
        parser.print_help()
        parser.exit()


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """The type of a finite number of `kind` int or float from `low` to `high`, both included."""
    def check(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun} {range_text(low, high)}")
        return value
    return check


whole = partial(number, int)  # whole(1, 64): a whole number from 1 to 64
real = partial(number, float)


def range_text(low: float, high: float) -> str:
    """A range in words: "from 1 to 64", or "of at least 1"."""
    if high < math.inf:
        return f"from {low:g} to {high:g}"
    return f"of at least {low:g}"


class Ascending(argparse.Action):
    """LO HI, the first not above the second (0 only beside 0), or any other number of values."""

    def __call__(self, parser: Parser, namespace: argparse.Namespace, values: list, *_: object) -> None:
        if len(values) == 2:
            low, high = values
            only_one_is_zero = (low == 0) != (high == 0)
            if low > high or only_one_is_zero:
                raise argparse.ArgumentError(
                    self, f"{low:g} {high:g} is not a range; write the lower end first")
        setattr(namespace, self.dest, values)


def file_to_write(*suffixes: str) -> Callable[[str], Path]:
    """The type of a file that a script writes: its name ends in one of `suffixes`, and it is not a folder."""
    def check(text: str) -> Path:
        if not text.endswith(suffixes) or Path(text).is_dir():
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a file name that ends in {' or '.join(suffixes)}")
        return Path(text)
    return check


def clip_flags(add: Callable[..., argparse.Action]) -> None:
    """The flags of frozen CLIP itself; add: the add_argument of their group."""
    add("--clip", default="ViT-B/32", help="CLIP: a name of OpenAI's (ViT-B/16) or of open_clip's weights "
        "(ViT-B-16/laion2b_s34b_b88k), a file, or `toy`")
    add("--clip-model", metavar="NAME", help="kind of CLIP in the file that --clip names: a name of either "
        "sort, or open_clip's name of a model (ViT-B-16, ViT-B-16-quickgelu); OpenAI's archives need none")
    add("--clip-cache", type=Path, metavar="FOLDER",
        help="folder to which CLIP's weights are downloaded (default: torch hub's folder)")
