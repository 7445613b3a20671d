"""Spread over seeds, the radar and the picture of a confusion: texts, corners and colours that numbers ask for."""
import numpy as np

from clipwsss.report.charts import COLORS, confusion_picture, radar, spread


def test_spread_is_the_mean_and_the_deviation_of_finite_values():
    assert spread([40.0, 42.0, float("nan")]) == "41.0 ± 1.4"
    assert spread([1.25], "+") == "+1.2" and spread([-1.0], "+") == "-1.0"
    assert spread([float("nan")]) == spread([]) == "failed"


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
