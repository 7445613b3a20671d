"""Flags and their parser: numbers with a range, pairs in order; a mistake is one line, help short or all."""
import argparse
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

from .errors import InputError, nearest

EXIT_STATUS = "exit status: 0 done, 2 wrong input or a fault of the machine, 130 interrupted"


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help of the `shown` flags (None: all) with defaults that say something; the example as written."""

    def __init__(self, prog: str, shown: Collection[str] | None = None):
        super().__init__(prog)
        self.shown = shown

    def add_argument(self, action: argparse.Action) -> None:
        if self.shown is None or action.dest in self.shown:
            super().add_argument(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return action.dest.rpartition("_")[2].upper()

    def _get_help_string(self, action: argparse.Action) -> str:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are InputErrors of one line, which names the nearest valid flag or choice."""

    def __init__(self, prog: str | None = None, formatter_class: Callable = HelpFormatter, **options: object):
        super().__init__(prog, formatter_class=formatter_class, **options)

    def parse_args(self, args: Sequence[str] | None = None,
                   namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"{unknown[0]}: no such flag{nearest(unknown[0], self._option_string_actions)}")
        return parsed

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            valid = ", ".join(map(str, action.choices)) + nearest(value, action.choices)
            raise argparse.ArgumentError(action, f"{value!r} is none of {valid}")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')} ({self.prog} --help lists all flags)")


class ShowAll(argparse.Action):
    """--help-all: print the help with every flag and stop."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.formatter_class = HelpFormatter
        parser.print_help()
        parser.exit()


class ScriptParser(Parser):
    """A parser with --help of the `essential` flags (destinations) and --help-all of all."""

    def __init__(self, description: str, example: str, essential: Sequence[str]):
        super().__init__(description=description, epilog=f"example:\n  {example}\n\n{EXIT_STATUS}",
                         usage="%(prog)s [flags]  (--help-all shows every flag)",
                         formatter_class=partial(HelpFormatter, shown=("help", "help_all", *essential)))
        self.add_argument("--help-all", action=ShowAll, nargs=0, default=argparse.SUPPRESS,
                          help="show every flag and exit")


class Number(NamedTuple):
    """An argparse type: a number of `kind` int or float from `low` to `high`, both included."""
    kind: type
    low: float
    high: float = math.inf

    def __call__(self, text: str) -> float:
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not (self.low <= value <= self.high and math.isfinite(value)):
            noun = "a whole number" if self.kind is int else "a number"
            span = f"from {self.low:g} to {self.high:g}" if self.high < math.inf else f"from {self.low:g} up"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun} {span}")
        return value


whole, real = partial(Number, int), partial(Number, float)  # the types of numbers from `low` to `high`


class Ascending(argparse.Action):
    """LO HI, the first not above the second (0 stands only beside 0), or any other number of values."""

    def __call__(self, parser: Parser, namespace: argparse.Namespace, values: list, *_: object) -> None:
        low, high = values[0], values[-1]
        if len(values) == 2 and (low > high or (low == 0) != (high == 0)):
            raise argparse.ArgumentError(self, f"{low:g} {high:g} is no range; write the lower end first")
        setattr(namespace, self.dest, values)


def file_to_write(*suffixes: str) -> Callable[[str], Path]:
    """The type of a file that a script writes: its name ends in one of `suffixes`, and no folder has it."""
    def check(text: str) -> Path:
        if not text.endswith(suffixes) or Path(text).is_dir():
            raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file in {' or '.join(suffixes)}")
        return Path(text)
    return check
