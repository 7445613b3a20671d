"""Tables and charts of results: mIoU over seeds in Markdown, a radar chart, a picture of a confusion."""
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..pictures import TEXT_SIZE

COLORS = ((45, 105, 180), (225, 130, 30), (60, 150, 80), (190, 50, 50))
SMOOTHING = 2  # the radar is drawn this many times larger and reduced, which makes its edges smooth


def spread(values: Iterable[float], sign: str = "") -> str:
    """Mean ± standard deviation of the finite values as text; sign "+" writes a plus sign too."""
    finite = np.array([value for value in values if np.isfinite(value)])
    if not len(finite):
        return "failed"
    text = f"{finite.mean():{sign}.1f}"
    if len(finite) > 1:
        text += f" ± {finite.std(ddof=1):.1f}"
    return text


def markdown(rows: Sequence, values: dict[str, NDArray], published_on: str = "VOC") -> str:
    """A Markdown table of rows: mean ± standard deviation, each seed, paired differences, published figure.

    rows: each has a `name`, `against` (the names of the rows it is compared with) and `paper` (published
    figures, of which the first is the row's own). values: mIoU [seeds] of each row by its name, NaN where a
    run failed. published_on: the data set of the published figures.
    """
    lines = [f"| row | mIoU % | seeds | difference (to) | the paper's, {published_on} |",
             "|---|---|---|---|---|"]
    for row in rows:
        own = values[row.name]
        seeds = " ".join("-" if np.isnan(value) else f"{value:.1f}" for value in own)
        differences = "; ".join(f"{spread(own - values[other], '+')} ({other})" for other in row.against
                                if other in values and other != row.name)
        published = row.paper[0] if row.paper else ""
        lines.append(f"| {row.name} | {spread(own)} | {seeds} | {differences} | {published} |")
    return "\n".join(lines) + "\n"


def radar(names: Sequence[str], series: dict[str, Sequence[float]], size: int = 460) -> Image.Image:
    """A radar chart of shares in [0,1]: one spoke for each name, one polygon for each series.

    A share of 0 lies in the middle and a share of 1 on the rim, `size` pixels across.
    """
    font = ImageFont.load_default(TEXT_SIZE * SMOOTHING)
    radius = size * SMOOTHING / 2
    margin = int(max(font.getlength(name) for name in names)) + 16 * SMOOTHING
    above = 30 * SMOOTHING
    legend_line = 22 * SMOOTHING
    legend_top = int(2 * (above + radius))
    height = legend_top + legend_line * len(series) + 10 * SMOOTHING
    picture = Image.new("RGB", (size * SMOOTHING + 2 * margin, height), "white")
    draw = ImageDraw.Draw(picture)
    center = (picture.width / 2, above + radius)

    def point(index: int, share: float) -> tuple[float, float]:
        angle = 2 * math.pi * index / len(names) - math.pi / 2  # the first spoke points up
        return center[0] + radius * share * math.cos(angle), center[1] + radius * share * math.sin(angle)

    for ring in (0.25, 0.5, 0.75, 1.0):
        draw.circle(center, radius * ring, outline="silver", width=SMOOTHING)
        place = (center[0] + 3 * SMOOTHING, center[1] - radius * ring)
        draw.text(place, f"{ring:.0%}", "gray", font, anchor="la")
    for index, name in enumerate(names):
        draw.line((center, point(index, 1)), "gainsboro", SMOOTHING)
        place = point(index, 1.03)
        draw.text(place, name, "black", font, anchor=_outward_anchor(place, center, radius))
    for number, (label, shares) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        corners = [point(index, share) for index, share in enumerate(shares)]
        draw.line([*corners, corners[0]], color, 2 * SMOOTHING, joint="curve")
        for corner in corners:
            draw.circle(corner, 4 * SMOOTHING, color, "white", SMOOTHING // 2)
        middle = legend_top + (number + 0.5) * legend_line
        draw.line((20 * SMOOTHING, middle, 44 * SMOOTHING, middle), color, 3 * SMOOTHING)
        draw.text((52 * SMOOTHING, middle), label, "black", font, anchor="lm")
    return picture.reduce(SMOOTHING)


def _outward_anchor(place: tuple[float, float], center: tuple[float, float], radius: float) -> str:
    """Pillow's anchor that lets a text at `place` extend away from the circle's center."""
    if abs(place[0] - center[0]) < radius * 0.1:
        across = "m"  # middle
    elif place[0] > center[0]:
        across = "l"  # the text's left end is at `place`
    else:
        across = "r"
    if place[1] < center[1] - radius:
        down = "s"  # the text's baseline is at `place`
    elif place[1] > center[1] + radius:
        down = "a"  # its ascender is
    else:
        down = "m"
    return across + down


def confusion_picture(table: NDArray, names: Sequence[str], cell: int = 30) -> Image.Image:
    """A picture of confusion [n,n]: a row for each true class, a column for each prediction.

    Cells show percent of the row's pixels: green on the diagonal, red elsewhere. The rows of classes that do
    not occur are grey. The names stand on the left and, turned, at the top.
    """
    font = ImageFont.load_default(TEXT_SIZE)
    margin = int(max(font.getlength(name) for name in names)) + 10
    side = margin + len(names) * cell + 1
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    for (row, column), share in np.ndenumerate(shares):
        left = margin + column * cell
        top = margin + row * cell
        if table[row].any():
            full = np.array((30, 120, 50)) if row == column else np.array((190, 40, 40))
            color = tuple((255 - (255 - full) * share**0.5).round().astype(int).tolist())
        else:
            color = "gainsboro"
        draw.rectangle((left, top, left + cell, top + cell), color, "silver")
        if share >= 0.005:
            text_color = "white" if share > 0.4 else "black"
            center = (left + cell / 2, top + cell / 2)
            draw.text(center, f"{100 * share:.0f}", text_color, font, anchor="mm")
    for index, name in enumerate(names):
        label = Image.new("RGB", (margin, cell - 2), "white")
        ImageDraw.Draw(label).text((5, cell / 2), name, "black", font, anchor="lm")
        picture.paste(label, (0, margin + index * cell + 1))
        picture.paste(label.rotate(90, expand=True), (margin + index * cell + 1, 0))
    return picture
