"""Tables and charts of results: figures and their spread over seeds, a radar, a confusion matrix."""
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLORS = ((45, 105, 180), (225, 130, 30), (60, 150, 80), (190, 50, 50))
TEXT_SIZE = 12
SCALE = 2  # drawn at twice the size and halved: smooth edges


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation of the values that are numbers, as text."""
    values = np.array([value for value in values if np.isfinite(value)])
    if not len(values):
        return "failed"
    return f"{values.mean():{sign}.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def markdown(rows: Sequence[NamedTuple], values: dict[str, np.ndarray],
             papers: Sequence[tuple[str, str]] = ()) -> str:
    """The table: mean ± standard deviation, every seed, paired differences, the paper's figure.

    A row has a `name`, the names of rows it is compared with (`against`), and the `paper`'s figures, of which
    the first is its own. papers: names and figures that the papers alone have; they come last.
    """
    lines = ["| row | mIoU % | seeds | difference (to) | the paper's, VOC |", "|---" * 5 + "|"]
    for row in rows:
        own = values[row.name]
        seeds = " ".join("-" if np.isnan(value) else f"{value:.1f}" for value in own)
        differences = "; ".join(f"{spread(own - values[other], '+')} ({other})" for other in row.against
                                if other in values and other != row.name)
        lines.append(f"| {row.name} | {spread(own)} | {seeds} | {differences} | {''.join(row.paper[:1])} |")
    lines += [f"| {name} | | | | {figure} |" for name, figure in papers]
    return "\n".join(lines) + "\n"


def bars(names: Sequence[str], values: Sequence[Sequence[float]], title: str = "") -> Image.Image:
    """A bar per row of figures >= 0, one a seed: mean, whisker of a standard deviation, dots, or "failed"."""
    font = ImageFont.load_default(TEXT_SIZE * SCALE)
    step, top, right = 26 * SCALE, 34 * SCALE, 70 * SCALE
    left = int(max(font.getlength(name) for name in names)) + 12 * SCALE
    wide = max(760 * SCALE - left - right, 200 * SCALE)
    highest = max((max(row) for row in values if len(row)), default=1.0) or 1.0
    tick = 10.0 ** math.floor(math.log10(highest))
    tick = tick / 5 if highest < 2 * tick else tick
    picture = Image.new("RGB", (left + wide + right, top + step * len(names) + 24 * SCALE), "white")
    draw, bottom = ImageDraw.Draw(picture), top + step * len(names)

    def across(value: float) -> float:
        return left + wide * value / (highest * 1.02)

    draw.text((8 * SCALE, top / 2), title, "black", font, anchor="lm")
    for number in range(int(highest / tick) + 1):
        place = across(number * tick)
        draw.line((place, top, place, bottom), "gainsboro", SCALE)
        draw.text((place, bottom + 12 * SCALE), f"{number * tick:g}", "black", font, anchor="mm")
    for index, (name, row) in enumerate(zip(names, values)):
        middle = top + (index + 0.5) * step
        draw.text((left - 6 * SCALE, middle), name, "black", font, anchor="rm")
        if not len(row):
            draw.text((left + 6 * SCALE, middle), "failed", "firebrick", font, anchor="lm")
            continue
        mean, deviation, half = np.mean(row), np.std(row, ddof=1) if len(row) > 1 else 0.0, step * 0.34
        draw.rectangle((left, middle - half, across(mean), middle + half), (170, 195, 230))
        ends = across(max(mean - deviation, 0)), across(mean + deviation)
        draw.line((ends[0], middle, ends[1], middle), "black", 2 * SCALE)
        for value in row:
            draw.circle((across(value), middle), 3 * SCALE, COLORS[0], "white", SCALE // 2)
        right_end = max(across(max(row)), ends[1]) + 8 * SCALE
        draw.text((right_end, middle), spread(row), "black", font, anchor="lm")
    return picture.reduce(SCALE)


def radar(names: Sequence[str], series: dict[str, Sequence[float]], size: int = 460) -> Image.Image:
    """Shares in [0,1] of each name as a polygon a series on spokes, 0 in the middle and 1 on the rim."""
    font = ImageFont.load_default(TEXT_SIZE * SCALE)
    margin = int(max(font.getlength(name) for name in names)) + 16 * SCALE
    side, below = size * SCALE, 22 * SCALE * len(series) + 10 * SCALE
    picture = Image.new("RGB", (side + 2 * margin, side + 60 * SCALE + below), "white")
    draw, radius = ImageDraw.Draw(picture), side / 2
    center = (picture.width / 2, 30 * SCALE + radius)

    def point(index: int, share: float) -> tuple[float, float]:
        angle = 2 * math.pi * index / len(names) - math.pi / 2
        return center[0] + radius * share * math.cos(angle), center[1] + radius * share * math.sin(angle)

    for ring in (0.25, 0.5, 0.75, 1.0):
        draw.circle(center, radius * ring, outline="silver", width=SCALE)
        place = (center[0] + 3 * SCALE, center[1] - radius * ring)
        draw.text(place, f"{ring:.0%}", "gray", font, anchor="la")
    for index, name in enumerate(names):
        draw.line((center, point(index, 1)), "gainsboro", SCALE)
        x, y = point(index, 1.03)
        across = "m" if abs(x - center[0]) < radius * 0.1 else "l" if x > center[0] else "r"
        down = "s" if y < center[1] - radius else "a" if y > center[1] + radius else "m"
        draw.text((x, y), name, "black", font, anchor=across + down)
    for number, (label, shares) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        corners = [point(index, share) for index, share in enumerate(shares)]
        draw.line([*corners, corners[0]], color, 2 * SCALE, joint="curve")
        for corner in corners:
            draw.circle(corner, 4 * SCALE, color, "white", SCALE // 2)
        height = picture.height - below + (number + 0.5) * 22 * SCALE
        draw.line((20 * SCALE, height, 44 * SCALE, height), color, 3 * SCALE)
        draw.text((52 * SCALE, height), label, "black", font, anchor="lm")
    return picture.reduce(SCALE)


def confusion_picture(table: np.ndarray, names: Sequence[str], cell: int = 30) -> Image.Image:
    """The confusion [n,n] as a picture: rows true classes, columns predictions, in percent of the row.

    Names stand at the left and, turned, on top; rows of classes that do not occur stay grey.
    """
    font = ImageFont.load_default(TEXT_SIZE)
    margin = int(max(font.getlength(name) for name in names)) + 10
    side = margin + len(names) * cell + 1
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    for (row, column), depth in np.ndenumerate(share):
        left, top = margin + column * cell, margin + row * cell
        full = np.array((30, 120, 50) if row == column else (190, 40, 40))
        color = tuple((255 - (255 - full) * depth**0.5).round().astype(int).tolist())
        color = color if table[row].any() else "gainsboro"
        draw.rectangle((left, top, left + cell, top + cell), color, "silver")
        if depth >= 0.005:
            text_color, center = "white" if depth > 0.4 else "black", (left + cell / 2, top + cell / 2)
            draw.text(center, f"{100 * depth:.0f}", text_color, font, anchor="mm")
    for index, name in enumerate(names):
        label = Image.new("RGB", (margin, cell - 2), "white")
        ImageDraw.Draw(label).text((5, cell / 2), name, "black", font, anchor="lm")
        picture.paste(label, (0, margin + index * cell + 1))
        picture.paste(label.rotate(90, expand=True), (margin + index * cell + 1, 0))
    return picture
