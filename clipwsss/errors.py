"""The one error users see, how other errors become it, and the wrapper that prints it as one line."""
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout

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


def nearest(value: object, valid: Iterable[object]) -> str:
    """"; did you mean X?" of the valid value that is spelled most like this one; "" where none is like it."""
    spelled = {str(item).lower(): item for item in valid}
    close = difflib.get_close_matches(str(value).lower(), spelled, 1, 0.5)
    return f"; did you mean {spelled[close[0]]}?" if close else ""


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block what is printed goes to the null device; stderr stays."""
    with open(os.devnull, "w") as null, redirect_stdout(null):
        yield


def run_script(main: Callable[[], int | None]) -> int:
    """Run a script's `main`; an InputError, missing file or package is one line and exit status 2.

    Where torchrun started several processes, `main` runs in all of them and the first error ends them all.
    With --quiet on the command line what it prints goes to the null device; errors are still told.
    """
    try:
        with processes(), quiet() if "--quiet" in sys.argv else nullcontext():
            return main() or 0
    except (InputError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished files are kept, --resume goes on", file=sys.stderr)
        return 130
