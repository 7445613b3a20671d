"""One terminal line that says how far a loop is."""
import os
import shutil
import sys
import time


class Progress:
    """One terminal line with loss terms, rate and time left; without a terminal only `close` prints.

    It is overwritten without escape sequences, which NO_COLOR and plain terminals do not want, and does not
    appear where nobody listens: where stdout is the null device, as --quiet makes it.
    """

    def __init__(self, label: str, total: int, unit: str = "images"):
        self.label, self.total, self.unit = label, total, unit
        self.done, self.begin, self.shown = 0, time.perf_counter(), 0.0
        self.live = sys.stderr.isatty() and getattr(sys.stdout, "name", "") != os.devnull

    def update(self, count: int, **terms: float) -> None:
        """Advance by `count`; `terms` may be tensors: they are read only when the line is drawn."""
        self.done += count
        now = time.perf_counter()
        if self.live and now - self.shown > 0.2:
            self.shown = now
            width = shutil.get_terminal_size().columns - 1  # a full line would wrap
            print(f"\r{self._line(terms, width):<{width}}", end="", file=sys.stderr, flush=True)

    def close(self, **terms: float) -> None:
        """Finish with one plain line."""
        if self.live:
            print(f"\r{'':{shutil.get_terminal_size().columns - 1}}\r", end="", file=sys.stderr, flush=True)
        self.total = self.done  # what a loop left out will not be done any more
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
        print(self._line(terms, width), flush=True)

    def _line(self, terms: dict, width: int) -> str:
        """The fullest form of the line that fits: the loss terms are shortened first, then left out."""
        spent = max(time.perf_counter() - self.begin, 1e-9)
        rate = self.done / spent
        left = (self.total - self.done) / max(rate, 1e-9)
        clock = f"{left:.0f} s left" if self.done < self.total else f"{spent:.1f} s"
        terms = {name: float(value) for name, value in terms.items()}
        full, short = ("  ".join(f"{name} {value:{form}}" for name, value in terms.items())
                       for form in (".4f", ".2g"))
        first = short.partition("  ")[0]
        count, speed = f"{self.label}  {self.done}/{self.total}", f"{rate:.1f} {self.unit}/s"
        forms = ([f"{count} {self.unit}", full, speed, clock], [f"{count} {self.unit}", short, speed, clock],
                 [f"{count} {self.unit}", first, speed, clock], [count, first, clock], [count, clock])
        lines = ["  ".join(filter(None, form)) for form in forms]
        return next((line for line in lines if len(line) <= width), lines[-1][:width])
