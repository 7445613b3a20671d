"""One terminal line that says how far a loop is."""
import sys
import time


class Progress:
    """One terminal line with loss terms, rate and time left; without a terminal only `close` prints."""

    def __init__(self, label: str, total: int, unit: str = "images"):
        self.label, self.total, self.unit = label, total, unit
        self.done, self.begin, self.shown = 0, time.perf_counter(), 0.0
        self.live = sys.stderr.isatty()

    def update(self, count: int, **terms: float) -> None:
        """Advance by `count`; `terms` may be tensors: they are read only when the line is drawn."""
        self.done += count
        now = time.perf_counter()
        if self.live and now - self.shown > 0.2:
            self.shown = now
            print(f"\r\x1b[K{self._line(terms)}", end="", file=sys.stderr, flush=True)

    def close(self, **terms: float) -> None:
        """Finish with one plain line."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        print(self._line(terms), flush=True)

    def _line(self, terms: dict) -> str:
        spent = max(time.perf_counter() - self.begin, 1e-9)
        rate = self.done / spent
        left = (self.total - self.done) / max(rate, 1e-9)
        shown = "  ".join(f"{name} {float(value):.4f}" for name, value in terms.items())
        clock = f"{left:.0f} s left" if self.done < self.total else f"{spent:.1f} s"
        done = f"{self.label}  {self.done}/{self.total} {self.unit}"
        return f"{done}  {shown}  {rate:.1f} {self.unit}/s  {clock}"
