"""Typed flags: numbers with a range, pairs in order, files to write; a mistake is one line that says so."""
import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from .errors import InputError, nearest


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are InputErrors of one line, which names the nearest valid flag or choice."""

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


class Number(NamedTuple):
    """An argparse type: a number of `kind` int or float from `low` to `high`, both included."""
    kind: type
    low: float
    high: float

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


def whole(low: int, high: float = math.inf) -> Number:
    """The type of a whole number from `low` to `high`."""
    return Number(int, low, high)


def real(low: float, high: float = math.inf) -> Number:
    """The type of a finite number from `low` to `high`."""
    return Number(float, low, high)


class Ascending(argparse.Action):
    """LO HI, the first not above the second; 0 stands only beside 0."""

    def __call__(self, parser: Parser, namespace: argparse.Namespace, values: list, *_: object) -> None:
        low, high = values
        if low > high or (low == 0) != (high == 0):
            raise argparse.ArgumentError(self, f"{low:g} {high:g} is no range; write the lower end first")
        setattr(namespace, self.dest, values)


def file_to_write(*suffixes: str) -> Callable[[str], Path]:
    """The type of a file that a script writes: its name ends in one of `suffixes`, and no folder has it."""
    def check(text: str) -> Path:
        if not text.endswith(suffixes) or Path(text).is_dir():
            raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file in {' or '.join(suffixes)}")
        return Path(text)
    return check
