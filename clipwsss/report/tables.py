"""Tables of figures over seeds as Markdown."""
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Compared(Protocol):
    """A row: its name, the names of rows it is compared with, and the paper's figure."""
    name: str
    against: tuple[str, ...]
    paper: str


def spread(values: NDArray, sign: str = "") -> str:
    """Mean and standard deviation of the values that are numbers, as text."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "failed"
    return f"{values.mean():{sign}.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def markdown(rows: Sequence[Compared], values: dict[str, NDArray]) -> str:
    """The table: mean ± standard deviation, every seed, paired differences, the paper's figure."""
    lines = ["| row | mIoU % | seeds | difference (to) | the paper's, VOC |", "|---" * 5 + "|"]
    for row in rows:
        own = values[row.name]
        seeds = " ".join("-" if np.isnan(value) else f"{value:.1f}" for value in own)
        differences = "; ".join(f"{spread(own - values[other], '+')} ({other})" for other in row.against
                                if other in values and other != row.name)
        lines.append(f"| {row.name} | {spread(own)} | {seeds} | {differences} | {row.paper} |")
    return "\n".join(lines) + "\n"
