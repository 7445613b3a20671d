"""Folders behind one interface, their tallies against plain sums, the curve, the printed figures."""
import numpy as np
import pytest

from clipwsss.cams.cam_files import write_cam
from clipwsss.datasets.jobs import ImageJobs
from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette, write_mask
from clipwsss.report import scoring
from clipwsss.report.metrics import boundary_confusion, confusion, scores, threshold_confusions

THRESHOLDS = (0.3, 0.5, 0.7)


class Data:
    """The part of a data set that scoring uses; the last of its 40 images has no mask."""
    names, classes, has_masks = [f"image{number:02d}" for number in range(40)], ["cat", "dog"], True

    def __len__(self) -> int:
        return len(self.names)

    def has_mask(self, index: int) -> bool:
        return index < 39

    def load_mask(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 3, (8, 12)).repeat(2, 0).astype(np.uint8)


@pytest.fixture
def folders(tmp_path) -> tuple[scoring.LabelFolder, scoring.CamFolder]:
    rng = np.random.default_rng(100)
    for name in Data.names:
        write_mask(tmp_path / "labels" / f"{name}.png", rng.integers(0, 3, (16, 12)).astype(np.uint8),
                   voc_palette())
        write_cam(tmp_path / "cams", name, np.array([1, 0]), rng.random((2, 4, 3)))
    return scoring.LabelFolder(tmp_path / "labels"), scoring.CamFolder(tmp_path / "cams")


@pytest.mark.parametrize("workers", [0, 2])
def test_tallies_are_the_sums_over_images(folders, workers):
    data, (labels, cams) = Data(), folders
    truths = [data.load_mask(index) for index in range(39)]
    tally = scoring.score(data, labels, ImageJobs(data.names, workers), boundary=True)
    maps = [labels.labels(name, (16, 12)) for name in data.names]
    tables = [confusion(*pair, 3) for pair in zip(maps, truths)]
    assert tally.images == 39 and np.array_equal(tally.confusion, sum(tables))
    assert np.array_equal(tally.boundary, sum(boundary_confusion(*pair, 3) for pair in zip(maps, truths)))
    figures = scores(tables[7])
    assert len(tally.per_image) == 39
    assert tally.per_image[7] == ("image07", figures["miou"], figures["accuracy"])
    swept = scoring.score(data, cams, ImageJobs(data.names, workers), THRESHOLDS)
    expected = sum(threshold_confusions(*cams.maps(name, (16, 12)), truth, THRESHOLDS, 3)
                   for name, truth in zip(data.names, truths))
    assert swept.images == 39 and np.array_equal(swept.confusion, expected)
    for threshold, table in zip(THRESHOLDS, expected):  # CAMs as label maps say the same
        alone = scoring.score(data, cams._replace(threshold=threshold), ImageJobs(data.names))
        assert np.array_equal(alone.confusion, table) and alone.boundary == 0


def test_missing_files_stop_or_are_left_out(folders, tmp_path):
    data, (labels, _) = Data(), folders
    for number in (3, 5, 39):
        (labels.path / f"image{number:02d}.png").unlink()
    with pytest.raises(InputError, match="labels: no file for image image03 .and 1 more of 40 images"):
        scoring.score(data, labels, ImageJobs(data.names))
    jobs = ImageJobs(data.names, skip_bad=True)
    assert scoring.score(data, labels, jobs).images == 37 and list(jobs.failures) == [3, 5]
    for path in list(labels.path.iterdir()):
        path.unlink()
    with pytest.raises(InputError, match="no label maps"):
        labels.names()
    write_mask(labels.path / "stranger.png", np.zeros((2, 2), np.uint8), voc_palette())
    with pytest.raises(InputError, match="no file for image image00"):
        scoring.score(data, labels, ImageJobs(data.names, skip_bad=True))


def test_the_printed_figures_are_returned(folders, capsys):
    data, (labels, cams) = Data(), folders
    tally = scoring.score(data, cams, ImageJobs(data.names), scoring.THRESHOLDS)
    curve = scoring.miou_curve(tally.confusion, scoring.THRESHOLDS, ["background", *data.classes])
    best = scoring.print_cam_curve(data, cams.path)
    assert best["miou"] == max(point["miou"] for point in curve["curve"])
    assert f"best CAM mIoU {best['miou']:.2f} at threshold {best['threshold']:.2f}" in capsys.readouterr().out
    table = scoring.score(data, labels, ImageJobs(data.names)).confusion
    assert scoring.print_label_miou(data, labels.path, "masks")["miou"] == float(scores(table)["miou"])
    data.has_masks = False
    assert scoring.print_cam_curve(data, cams.path) == scoring.print_label_miou(data, labels.path, "x") == {}
