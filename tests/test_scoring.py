"""Scores of folders against plain sums, the curve, the printed figures."""
import numpy as np
import pytest

from clipwsss.cams.cam_files import read_cam, resize_cam, write_cam
from clipwsss.datasets.jobs import ImageJobs
from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette, write_mask
from clipwsss.report import scoring
from clipwsss.report.metrics import confusion, scores, threshold_confusions

THRESHOLDS = (0.3, 0.5, 0.7)


class Data:
    """The part of a data set that scoring uses; the last of its 40 images has no mask."""
    names = [f"image{number:02d}" for number in range(40)]
    classes = ["cat", "dog"]
    has_masks = True
    masked = [True] * 39 + [False]

    def __len__(self) -> int:
        return len(self.names)

    def load_mask(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 3, (8, 12)).repeat(2, 0).astype(np.uint8)


@pytest.fixture
def folders(tmp_path):
    """A folder of label maps and one of CAM files of all images of `Data`."""
    rng = np.random.default_rng(100)
    for name in Data.names:
        write_mask(tmp_path / "labels" / f"{name}.png", rng.integers(0, 3, (16, 12)).astype(np.uint8),
                   voc_palette())
        write_cam(tmp_path / "cams", name, np.array([1, 0]), rng.random((2, 4, 3)))
    return tmp_path / "labels", tmp_path / "cams"


@pytest.mark.smoke
def test_tables_are_the_sums_over_images(folders):
    data = Data()
    labels, cams = folders
    truths = [data.load_mask(index) for index in range(39)]
    maps = [scoring.read_labels(labels, name, (16, 12), None) for name in data.names]
    tables = [confusion(*pair, 3) for pair in zip(maps, truths)]
    files = [read_cam(cams, name) for name in data.names]
    swept = sum(threshold_confusions(resize_cam(file, (16, 12)), file.keys, truth, THRESHOLDS, 3)
                for file, truth in zip(files, truths))
    for workers in (0, 2):
        table, image_scores = scoring.score_label_maps(data, labels, ImageJobs(data.names, workers))
        assert np.array_equal(table, sum(tables)), workers
        figures = scores(tables[7])
        assert len(image_scores) == 39, workers
        assert image_scores[7] == ("image07", figures["miou"], figures["accuracy"]), workers
        found, images = scoring.score_cams(data, cams, ImageJobs(data.names, workers), THRESHOLDS)
        assert images == 39 and np.array_equal(found, swept), workers
    for threshold, expected in zip(THRESHOLDS, swept):  # CAMs read as label maps give the same
        table, _ = scoring.score_label_maps(data, cams, ImageJobs(data.names), threshold)
        assert np.array_equal(table, expected), threshold


def test_missing_files_stop_or_are_left_out(folders):
    data = Data()
    labels, _ = folders
    for number in (3, 5, 39):
        (labels / f"image{number:02d}.png").unlink()
    with pytest.raises(InputError, match="labels: no file for image image03 .and 1 more of 40 images"):
        scoring.score_label_maps(data, labels, ImageJobs(data.names))
    jobs = ImageJobs(data.names, skip_bad=True)
    _, image_scores = scoring.score_label_maps(data, labels, jobs)
    assert len(image_scores) == 37 and list(jobs.failures) == [3, 5]
    for path in list(labels.iterdir()):
        path.unlink()
    with pytest.raises(InputError, match="no label maps"):
        scoring.list_label_maps(labels)
    write_mask(labels / "stranger.png", np.zeros((2, 2), np.uint8), voc_palette())
    with pytest.raises(InputError, match="no file for image image00"):
        scoring.score_label_maps(data, labels, ImageJobs(data.names, skip_bad=True))


def test_the_printed_figures_are_returned(folders, capsys):
    data = Data()
    labels, cams = folders
    tables, _ = scoring.score_cams(data, cams, ImageJobs(data.names), scoring.THRESHOLDS)
    curve = scoring.miou_curve(tables, scoring.THRESHOLDS, ["background", *data.classes])
    best = scoring.print_cam_curve(data, cams)
    printed = capsys.readouterr().out
    assert [point["threshold"] for point in curve["curve"]] == [round(0.01 * step, 2) for step in range(1, 100)]
    lines = [line.split() for line in printed.splitlines() if line.startswith(("threshold", "mIoU"))]
    assert lines[0][1:] + lines[2][1:] == [f"{0.05 * step:.2f}" for step in range(1, 20)]
    assert lines[1][1] == f"{curve['curve'][4]['miou']:.2f}"  # that of threshold 0.05
    assert best["miou"] == max(point["miou"] for point in curve["curve"])
    assert f"best CAM mIoU {best['miou']:.2f} at threshold {best['threshold']:.2f}" in printed
    table, _ = scoring.score_label_maps(data, labels, ImageJobs(data.names))
    assert scoring.print_label_miou(data, labels, "masks")["miou"] == float(scores(table)["miou"])
    data.has_masks = False
    assert scoring.print_cam_curve(data, cams) == scoring.print_label_miou(data, labels, "x") == {}


def test_class_figures_list_what_pixels_are_taken_for():
    table = np.array([[90, 10, 0], [60, 39, 1], [0, 0, 0]])
    figures = scoring.class_figures(table, ["background", "boat", "sea"])
    assert figures["iou"] == {"background": 56.25, "boat": 35.4545, "sea": 0.0}
    assert figures["taken_for"] == {"background": {"boat": 10.0}, "boat": {"background": 60.0, "sea": 1.0}, "sea": {}}
    assert figures["taken_from"] == {"background": {"boat": 40.0}, "boat": {"background": 20.41}, "sea": {"boat": 100.0}}
    assert figures["miou"] == pytest.approx(30.5682, abs=1e-3)
