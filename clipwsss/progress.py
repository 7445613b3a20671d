"""A terminal line that shows how far a loop is."""
import shutil
import sys
import time

REDRAW_SECONDS = 0.2
LINE_SECONDS = 30  # between two lines where there is no terminal


class Progress:
    """A terminal line with the count, the loss terms, the rate and the time left of a loop.

    The line is redrawn where stdout is a terminal, without escape sequences, which plain terminals do not
    understand. Elsewhere, as in a log file, a new line is printed every LINE_SECONDS. `close` prints the
    final line. done: how much was done before, by an earlier run.
    """

    def __init__(self, label: str, total: int, unit: str = "images", done: int = 0):
        self.label = label
        self.total = total
        self.unit = unit
        self.before = done
        self.done = done
        self.begin = time.perf_counter()
        # When the line was drawn last; a terminal shows the first update.
        self.drawn = self.begin - 2 * REDRAW_SECONDS
        self.is_live = sys.stdout.isatty()

    def update(self, count: int, **terms: float) -> None:
        """Advance by `count`. `terms` may be tensors on a GPU: they are read only when the line is drawn."""
        self.done += count
        now = time.perf_counter()
        if not self.is_live and now - self.drawn > LINE_SECONDS and self.done < self.total:
            self.drawn = now
            print(self._line(terms, 1000), flush=True)
        if self.is_live and now - self.drawn > REDRAW_SECONDS:
            self.drawn = now
            width = shutil.get_terminal_size().columns - 1  # a full line would wrap
            print(f"\r{self._line(terms, width):<{width}}", end="", flush=True)

    def close(self, **terms: float) -> None:
        """Print the final line. The total becomes what was done, because a loop may leave bad images out."""
        if self.is_live:
            blank = " " * (shutil.get_terminal_size().columns - 1)
            print(f"\r{blank}\r", end="", flush=True)
        self.total = self.done
        width = shutil.get_terminal_size().columns if self.is_live else 1000
        print(self._line(terms, width), flush=True)

    def _line(self, terms: dict[str, float], width: int) -> str:
        """The longest form of the line that fits into `width` characters, for example

            train 1/4  6/400 images  loss 12.3457  fg 0.5000  2.0 images/s  197 s left
            train 1/4  6/400 images  loss 12  fg 0.5  2.0 images/s  197 s left
            train 1/4  6/400 images  loss 12  2.0 images/s  197 s left
            train 1/4  6/400  loss 12  197 s left
            train 1/4  6/400  197 s left
        """
        spent = max(time.perf_counter() - self.begin, 1e-9)
        rate = (self.done - self.before) / spent
        seconds_left = (self.total - self.done) / max(rate, 1e-9)
        clock = f"{seconds_left:.0f} s left" if self.done < self.total else f"{spent:.1f} s"
        count = f"{self.label}  {self.done}/{self.total}"
        speed = f"{rate:.1f} {self.unit}/s"
        exact_terms = [f"{name} {float(value):.4f}" for name, value in terms.items()]
        short_terms = [f"{name} {float(value):.2g}" for name, value in terms.items()]
        first_term = short_terms[:1]
        for parts in ([f"{count} {self.unit}", *exact_terms, speed, clock],
                      [f"{count} {self.unit}", *short_terms, speed, clock],
                      [f"{count} {self.unit}", *first_term, speed, clock],
                      [count, *first_term, clock],
                      [count, clock]):
            line = "  ".join(parts)
            if len(line) <= width:
                return line
        return line[:width]
