"""Scores: hand-computed values, one pass against the plain reference, bad values, standing alone."""
import shutil
import subprocess
import sys

import numpy as np
import pytest

from clipwsss.report import metrics


def plain_confusion(prediction, truth, n):
    table = np.zeros((n, n), np.int64)
    for true, predicted in zip(truth.ravel().tolist(), prediction.ravel().tolist()):
        if true != 255:
            table[true, predicted] += 1
    return table


def test_confusion_and_scores_by_hand():
    truth = np.array([[0, 0, 1, 1], [255, 1, 1, 2]], np.uint8)
    prediction = np.array([[0, 1, 1, 1], [2, 0, 1, 0]], np.uint8)
    table = metrics.confusion(prediction, truth, 5)
    assert table.dtype == np.int64 and table.sum() == 7
    assert table[:3, :3].tolist() == [[1, 1, 0], [1, 3, 0], [1, 0, 0]]
    result = metrics.scores(table)
    assert np.allclose(result["iou"][:3], [25, 60, 0]) and np.isnan(result["iou"][3:]).all()
    assert result["miou"] == pytest.approx(85 / 3) and result["classes"] == 3
    assert np.allclose(result["precision"][:2], [100 / 3, 75]) and np.isnan(result["precision"][2])
    assert np.allclose(result["recall"][:3], [50, 75, 0])
    assert result["accuracy"] == pytest.approx(400 / 7)


def test_class_only_predicted_counts_in_the_mean():
    table = metrics.confusion(np.array([[1, 3]], np.uint8), np.array([[1, 1]], np.uint8), 4)
    assert metrics.scores(table)["miou"] == 25.0  # classes 1 (50) and 3 (0); 0 and 2 occur nowhere


def test_confusion_equals_the_plain_loop_and_stacks():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 7, (23, 31)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    predictions = rng.integers(0, 7, (3, 23, 31)).astype(np.uint8)
    tables = np.stack([metrics.confusion(item, truth, 7) for item in predictions])
    assert np.array_equal(tables, np.stack([plain_confusion(item, truth, 7) for item in predictions]))
    stacked = metrics.scores(tables)
    assert stacked["miou"].shape == (3,)
    assert stacked["miou"][1] == metrics.scores(tables[1])["miou"]
    assert np.isnan(metrics.scores(np.zeros((4, 4), np.int64))["miou"])


def test_bad_label_maps_are_refused():
    good = np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match="prediction has value 9; classes are 0..4"):
        metrics.confusion(np.full((2, 3), 9, np.uint8), good, 5)
    with pytest.raises(ValueError, match="truth has value 9; classes are 0..4, ignored pixels 255"):
        metrics.confusion(good, np.full((2, 3), 9, np.uint8), 5)
    with pytest.raises(ValueError, match="prediction is 3x2, the truth 2x3"):
        metrics.confusion(good.T.copy(), good, 5)
    with pytest.raises(ValueError, match="uint8, not int64"):
        metrics.confusion(good.astype(np.int64), good, 5)
    with pytest.raises(ValueError, match=r"not all in 0..3"):
        metrics.threshold_confusions(np.zeros((1, 2, 3), np.float32), [4], good, [0.1], 5)
    with pytest.raises(ValueError, match="maps are 3x2, the truth 2x3"):
        metrics.threshold_confusions(np.zeros((1, 3, 2), np.float32), [0], good, [0.1], 5)


@pytest.mark.parametrize("keys", [[2], [0, 3], [3, 1, 0], []])
def test_threshold_sweep_equals_argmax_per_threshold(keys):
    rng = np.random.default_rng(len(keys))
    cams = rng.integers(0, 11, (len(keys), 19, 26)).astype(np.float32) / 10  # many ties, with thresholds too
    truth = rng.integers(0, 5, (19, 26)).astype(np.uint8)
    truth[:3] = 255
    thresholds = [0.3, 0.1, 0.95, 0.0, 0.3]
    tables = metrics.threshold_confusions(cams, keys, truth, thresholds, 5)
    names = np.append(0, np.asarray(keys, int) + 1)
    for threshold, table in zip(thresholds, tables):
        padded = np.pad(cams, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
        expected = plain_confusion(names[padded.argmax(0)], truth, 5)
        assert np.array_equal(table, expected), threshold


def test_boundary_confusion_by_hand_and_against_erosion():
    truth = np.zeros((30, 40), np.uint8)
    truth[8:24, 10:30] = 1
    shifted = np.roll(truth, 2, axis=1)
    table = metrics.boundary_confusion(truth, truth, 2)
    assert np.allclose(metrics.scores(table)["iou"], 100)  # diagonal 50: bands 1 pixel wide
    assert table[1, 1] == 2 * 16 + 2 * 18 and table[0, 0] == (30 * 40 - 28 * 38) + (18 * 22 - 16 * 20)
    result = metrics.scores(metrics.boundary_confusion(shifted, truth, 2))["iou"]
    assert result[1] == pytest.approx(100 * (2 * 18) / (2 * 68 - 2 * 18))  # rows overlap on 18 of 20 columns
    ignoring = truth.copy()
    ignoring[10:20, 28:33] = 255
    assert np.allclose(metrics.scores(metrics.boundary_confusion(truth, ignoring, 2))["iou"], 100)
    wide = metrics.boundary_confusion(truth, truth, 2, ratio=0.1)
    assert wide[1, 1] == 16 * 20 - 6 * 10


def test_average_precision_by_hand():
    scores = [[0.9, 0.1, 5], [0.8, 0.7, 5], [0.7, 0.7, 5], [0.1, 0.7, 5]]
    labels = [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]
    first = (1 + 2 / 3) / 2
    second = 2 / 3  # three equal scores enter together
    assert metrics.average_precision(scores, labels) == pytest.approx(100 * (first + second) / 2)
    assert np.isnan(metrics.average_precision([[0.5]], [[0]]))
    with pytest.raises(ValueError, match="not all finite"):
        metrics.average_precision([[np.nan]], [[1]])
    with pytest.raises(ValueError, match="not both"):
        metrics.average_precision([[1.0, 2.0]], [[1]])


def test_lifts_out_alone(tmp_path):
    shutil.copy(metrics.__file__, tmp_path)
    code = 'import metrics as m, numpy as np; a = np.ones((2, 2), "u1"); print(m.confusion(a, a, 2)[1, 1])'
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "4", done.stderr
