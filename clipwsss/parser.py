"""A script's help: short, with the flags that matter, or all of it on demand; its exit statuses."""
import argparse
from collections.abc import Collection, Sequence
from functools import partial

from .flags import Parser

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
