"""The error that users see, how other errors become it, and the wrapper that prints it as one line."""
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout

from .distributed import processes, rank

OUT_OF_MEMORY = "out of memory; use smaller batches, crops or images"
# Parts of the messages of torch's RuntimeErrors that the machine causes, and what the user is told.
MACHINE_ERRORS = {
    "DataLoader worker (pid": "the system ended a process that loads data; use fewer --workers",
    "out of memory": OUT_OF_MEMORY,
    "can't allocate memory": OUT_OF_MEMORY,
}


class InputError(ValueError):
    """A file or an option of the user is wrong: one line names it and what would be right.

    problems: one line for each thing that is wrong, where the message stands for several.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()):
        super().__init__(message)
        self.problems = list(problems) or [message]


def one_line(error: BaseException) -> str:
    """The message of an error in one line.

    An InputError of a process that loads data arrives with a traceback in its message. Of the last line, for
    example "clipwsss.errors.InputError: a.png: not a readable image", the part after the class is kept.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    last_line = str(error).strip().rpartition("\n")[2]
    last_line = last_line.removeprefix(f"{InputError.__module__}.InputError: ")
    return last_line.removeprefix("ModuleNotFoundError: ")


@contextmanager
def input_errors(where: str = "", *kinds: type[Exception]) -> Iterator[None]:
    """Turn a ValueError, or errors of these `kinds`, of the block into an InputError beginning with `where`.

    An InputError of the block names its file already and stays as it is.
    """
    try:
        yield
    except InputError:
        raise
    except kinds or ValueError as error:
        raise InputError(f"{where}{one_line(error)}") from error


def nearest(value: object, valid: Iterable[object]) -> str:
    """A hint at the valid value of the most similar spelling, "; did you mean X?", or "" without one."""
    spelled = {str(item).lower(): item for item in valid}
    close = difflib.get_close_matches(str(value).lower(), spelled, 1, 0.5)
    return f"; did you mean {spelled[close[0]]}?" if close else ""


@contextmanager
def quiet(warnings: bool = True) -> Iterator[None]:
    """Discard what the block prints to stdout, and without `warnings` also what it prints to stderr."""
    with open(os.devnull, "w", encoding="utf-8", errors="replace") as null, redirect_stdout(null):
        with nullcontext() if warnings else redirect_stderr(null):
            yield


def run_script(main: Callable[[], int | None]) -> int:
    """Run a script's `main` and return the exit status of the process.

    0 is success and 2 an error that the user or the machine caused, which is printed as one line. 130 is an
    interruption by Ctrl-C; 141 says that the reader of the output has closed it, as `| head` does. A fault of
    this package keeps its traceback.
    Where torchrun started several processes, `main` runs in each of them, the main process alone prints, and
    the first error ends them all. With --quiet on the command line it prints warnings and errors only.
    What is printed never fails: a character that the terminal's encoding lacks is printed as its code.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a notebook or a test has replaced it
            stream.reconfigure(errors="backslashreplace")
    try:
        with processes():
            silent = rank() > 0 or "--quiet" in sys.argv
            with quiet(warnings=rank() == 0) if silent else nullcontext():
                code = main() or 0
                sys.stdout.flush()
        return code
    except BrokenPipeError:
        # At its end Python flushes stdout once more and would complain about the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        print("the reader of the output has closed it; finished files are kept", file=sys.stderr)
        return 141
    except KeyboardInterrupt:
        print("interrupted; finished files are kept. To continue, run the same command again, with --resume "
              "where the script has it", file=sys.stderr)
        return 130
    except MemoryError:
        print(f"error: {OUT_OF_MEMORY}", file=sys.stderr)
        return 2
    except (InputError, OSError, ModuleNotFoundError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        for sign, reason in MACHINE_ERRORS.items():
            if sign in str(error):
                print(f"error: {reason}. To continue, run the same command again, with --resume where the "
                      "script has it", file=sys.stderr)
                return 2
        raise
