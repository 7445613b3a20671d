"""Bars and radar: lengths and corners where the numbers say."""
import numpy as np
import pytest

from clipwsss.report.charts import COLORS, bars, radar

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


@pytest.mark.parametrize("values", [[[0.0]], [[]], [[100.0, 100.0]], [[0.03]]])
def test_odd_values_are_drawn_too(values):
    assert bars(["row"], values).width >= 760


def test_radar_has_a_corner_at_every_share():
    picture = radar(["up", "right", "down", "left"], {"own": [1.0, 0.5, 0.25, 0.0]}, size=200)
    picture = np.asarray(picture).astype(int)
    margin = (picture.shape[1] - 200) // 2
    center = (margin + 100, 30 + 100)
    for dx, dy in ((0, -100), (50, 0), (0, 25), (0, 0)):
        spot = picture[center[1] + dy, center[0] + dx]
        assert np.abs(spot - COLORS[0]).sum() < 60, (dx, dy, spot)
    assert np.abs(picture[center[1], center[0] - 50] - COLORS[0]).sum() > 200
