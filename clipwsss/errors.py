"""The one error users see, how other errors become it, and the wrapper that prints it as one line."""
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .distributed import processes


class InputError(ValueError):
    """A user's file or option is wrong; the message is one line that names it and what would be right.

    problems: one line for everything that is wrong, where the message stands for several.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()):
        super().__init__(message)
        self.problems = list(problems) or [message]


@contextmanager
def input_errors(where: str = "", *kinds: type[Exception]) -> Iterator[None]:
    """Inside the block a ValueError (or these `kinds`) becomes an InputError that begins with `where`."""
    try:
        yield
    except InputError:
        raise
    except kinds or ValueError as error:
        raise InputError(f"{where}{error}") from error


def run_script(main: Callable[[], int | None]) -> int:
    """Run a script's `main`; an InputError, missing file or package is one line and exit status 2.

    Where torchrun started several processes, `main` runs in all of them and the first error ends them all.
    """
    try:
        with processes():
            return main() or 0
    except (InputError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished files are kept, --resume goes on", file=sys.stderr)
        return 130
