"""Bars and radar: lengths and corners where the numbers say."""
import numpy as np
import pytest

from clipwsss.report.charts import COLORS, bars, confusion_picture, radar

BAR = np.array((170, 195, 230))


def bar_lengths(picture):
    """Width in pixels of each row's bar, from the picture alone."""
    pixels = np.asarray(picture).astype(int)
    blue = (np.abs(pixels - BAR).sum(-1) < 8)
    rows = [blue[34 + 26 * index + 6].sum() for index in range((picture.height - 34 - 24) // 26)]
    return [int(row) for row in rows]


def test_bars_are_as_long_as_their_means():
    rows = {"one": [60.0], "half": [30.0], "three seeds": [10.0, 20.0, 30.0], "none": []}
    lengths = bar_lengths(bars(list(rows), list(rows.values())))
    assert lengths[0] == pytest.approx(2 * lengths[1], abs=3)
    assert lengths[2] == pytest.approx(lengths[0] / 3, abs=3)
    assert lengths[0] > 300 and lengths[3] == 0


def dots(picture):
    """Left and right end of the only row's dots in pixels: their centres, one or several seeds."""
    pixels = np.asarray(picture).astype(int)
    columns = np.flatnonzero((np.abs(pixels - COLORS[0]).sum(-1) < 60).any(0))
    return (columns[0] + 2, columns[-1] - 2) if len(columns) else None


def test_a_dot_stands_at_every_seeds_value():
    left, right = dots(bars(["row"], [[0.0, 80.0]]))
    assert left == pytest.approx(34, abs=2) and right == pytest.approx(690 - 13, abs=2)  # 2 % of room
    assert dots(bars(["row"], [[20.0, 80.0]]))[0] == pytest.approx(left + 0.25 * (right - left), abs=2)
    for values in ([100.0, 100.0], [0.03]):  # the highest value ends the scale, whatever it is
        assert dots(bars(["row"], [values])) == pytest.approx((right, right), abs=2)
    assert dots(bars(["row"], [[0.0]])) == pytest.approx((left, left), abs=2)


def test_a_row_without_values_is_called_failed():
    pixels = np.asarray(bars(["row"], [[]])).astype(int)
    assert dots(pixels) is None and (pixels[..., 0] - pixels[..., 1] > 100).sum() > 20  # a red word
    assert bar_lengths(bars(["row"], [[]])) == [0]


def test_radar_has_a_corner_at_every_share():
    picture = radar(["up", "right", "down", "left"], {"own": [1.0, 0.5, 0.25, 0.0]}, size=200)
    picture = np.asarray(picture).astype(int)
    margin = (picture.shape[1] - 200) // 2
    center = (margin + 100, 30 + 100)
    for dx, dy in ((0, -100), (50, 0), (0, 25), (0, 0)):
        spot = picture[center[1] + dy, center[0] + dx]
        assert np.abs(spot - COLORS[0]).sum() < 60, (dx, dy, spot)
    assert np.abs(picture[center[1], center[0] - 50] - COLORS[0]).sum() > 200


def test_confusion_picture_colours_by_share_of_the_row():
    table = np.array([[3, 1, 0], [0, 0, 0], [0, 5, 5]])
    picture = confusion_picture(table, ["a", "bb", "c"], cell=30)
    left = picture.width - 3 * 30 - 1
    corners = [[picture.getpixel((left + 30 * column + 3, left + 30 * row + 3)) for column in range(3)]
               for row in range(3)]
    assert corners[0][2] == (255, 255, 255) and corners[1] == [(220, 220, 220)] * 3
    assert corners[0][0][1] > corners[0][0][0] and corners[0][1][0] > corners[0][1][1]
    assert sum(corners[2][1]) < sum(corners[0][1])
