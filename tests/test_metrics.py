"""Scores: hand-computed values, the one pass against a plain reference, bad values."""
import numpy as np
import pytest

from clipwsss.report import metrics


def plain_confusion(prediction, truth, n):
    table = np.zeros((n, n), np.int64)
    for true, predicted in zip(truth.ravel().tolist(), prediction.ravel().tolist()):
        if true != 255:
            table[true, predicted] += 1
    return table


@pytest.mark.smoke
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
    with pytest.raises(ValueError, match=r"keys .2, 2. are not all different"):
        metrics.threshold_confusions(np.zeros((2, 2, 3), np.float32), [2, 2], good, [0.1], 5)
    with pytest.raises(ValueError, match="maps are 3x2, the truth 2x3"):
        metrics.threshold_confusions(np.zeros((1, 3, 2), np.float32), [0], good, [0.1], 5)


@pytest.mark.smoke
def test_threshold_sweep_equals_argmax_per_threshold():
    for keys in ([2], [0, 3], [3, 1, 0], []):
        rng = np.random.default_rng(len(keys))
        # Values in steps of 0.1 tie with each other and with the thresholds.
        cams = rng.integers(0, 11, (len(keys), 19, 26)).astype(np.float32) / 10
        truth = rng.integers(0, 5, (19, 26)).astype(np.uint8)
        truth[:3] = 255
        thresholds = [0.3, 0.1, 0.95, 0.0, 0.3]
        tables = metrics.threshold_confusions(cams, keys, truth, thresholds, 5)
        names = np.append(0, np.asarray(keys, int) + 1)
        for threshold, table in zip(thresholds, tables, strict=True):
            padded = np.pad(cams, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
            expected = plain_confusion(names[padded.argmax(0)], truth, 5)
            assert np.array_equal(table, expected), (keys, threshold)


def test_an_image_of_many_classes_passes_on_the_counts_of_its_own():
    cams = np.array([[[0.1, 0.4], [0.6, 0.2]], [[0.3, 0.2], [0.1, 0.9]]], np.float32)  # of classes 8 and 3
    truth = np.array([[0, 9], [9, 255]], np.uint8)
    true, predicted, counts = metrics.threshold_counts(cams, [8, 3], truth, [0.5, 0.35, 0.05], 81)
    assert true.tolist() == [0, 9] and predicted.tolist() == [0, 9, 4]
    # The pixels of value 0.3 (class 4), 0.4 (class 9) and 0.6 (class 9); the fourth is ignored.
    assert counts.tolist() == [[[1, 0, 0], [1, 1, 0]], [[1, 0, 0], [0, 2, 0]], [[0, 0, 1], [0, 2, 0]]]
    tables = np.ones((3, 81, 81), np.int64)
    metrics.add_counts(tables, (true, predicted, counts))
    assert np.array_equal(tables - 1, metrics.threshold_confusions(cams, [8, 3], truth, [0.5, 0.35, 0.05], 81))


def test_long_and_short_runs_are_counted_alike():
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 7, (2, 4, 6)).astype(np.uint8)
    blocks[1, 2] = 255
    prediction, truth = blocks.repeat(9, 1).repeat(11, 2) % 255
    truth[blocks[1].repeat(9, 0).repeat(11, 1) == 255] = 255
    assert np.array_equal(metrics.confusion(prediction, truth, 7), plain_confusion(prediction, truth, 7))
    one = np.array([[3]], np.uint8)
    assert metrics.confusion(one, one, 4)[3, 3] == 1
    assert metrics.confusion(one[:0], one[:0], 4).sum() == 0


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
