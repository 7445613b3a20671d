"""The one error users see, how other errors become it, and the wrapper that prints it as one line."""
import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout

from .distributed import processes


# What torch's RuntimeErrors say when the machine, not the code, is at fault.
OF_THE_MACHINE = {"DataLoader worker (pid": "a loading process was killed; try fewer --workers",
                  "out of memory": "out of memory: take smaller batches or crops",
                  "can't allocate memory": "out of memory: take smaller batches or crops"}


class InputError(ValueError):
    """A user's file or option is wrong; the message is one line that names it and what would be right.

    problems: one line for everything that is wrong, where the message stands for several.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()):
        super().__init__(message)
        self.problems = list(problems) or [message]


def one_line(error: BaseException) -> str:
    """An error's message; of one from a loader's process, the last line without the error's name."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error).strip().rpartition("\n")[2].removeprefix(f"{InputError.__module__}.InputError: ")


@contextmanager
def input_errors(where: str = "", *kinds: type[Exception]) -> Iterator[None]:
    """Inside the block a ValueError (or these `kinds`) becomes an InputError that begins with `where`."""
    try:
        yield
    except InputError:
        raise
    except kinds or ValueError as error:
        raise InputError(f"{where}{one_line(error)}") from error


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
    """Run a script's `main`; what a user or a machine can cause is one line and exit status 2.

    A reader that closes the output ends it with 141, Ctrl-C with 130; a fault of ours keeps its traceback.
    Where torchrun started several processes, `main` runs in all of them and the first error ends them all.
    With --quiet on the command line what it prints goes to the null device; errors are still told.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as the scripts have it while they import
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with processes(), quiet() if "--quiet" in sys.argv else nullcontext():
            code = main() or 0
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # else Python complains at its end
        print("output closed; finished files are kept", file=sys.stderr)
        return 141
    except KeyboardInterrupt:
        print("interrupted; finished files are kept, --resume goes on", file=sys.stderr)
        return 130
    except (InputError, OSError, ModuleNotFoundError, MemoryError) as error:
        print(f"error: {one_line(error) or 'out of memory; take smaller batches or crops'}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        reason = next((reason for sign, reason in OF_THE_MACHINE.items() if sign in str(error)), None)
        if reason is None:
            raise
        print(f"error: {reason}; --resume goes on", file=sys.stderr)
        return 2
