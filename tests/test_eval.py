"""eval.py: published figures on real images, JSON, comparisons, pictures, bad files, data without masks."""
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval as script
from clipwsss.cams.cam_files import write_cam
from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette, write_mask
from clipwsss.report.metrics import confusion, scores

THRESHOLDS = ["0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.4"]
PUBLISHED = [33.46, 37.22, 39.22, 40.63, 41.77, 41.05, 36.26]
SIZES = [(20, 30), (24, 16), (18, 18)]


@pytest.fixture
def own_data(tmp_path) -> Path:
    """A folder data set of 3 images with 2 classes and masks, and two folders of predictions."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "classes.txt").write_text("cat\ndog\n")
    lines = ["image,labels"]
    for number, size in enumerate(SIZES):
        name = f"photo{number}"
        pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        lines.append(f"{name}.png,cat;dog")
        truth = np.zeros(size, np.uint8)
        truth[4:12, 3:10], truth[12:16, :8], truth[0] = 1, 2, 255
        write_mask(root / "masks" / f"{name}.png", truth, voc_palette())
        write_mask(tmp_path / "perfect" / f"{name}.png", np.where(truth == 255, 0, truth), voc_palette())
        write_mask(tmp_path / "shifted" / f"{name}.png", np.roll(truth % 255, number, 1), voc_palette())
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def run(root: Path, *options: object) -> int:
    return script.main(["--dataset", "folder", "--data-root", str(root), "--split", "train", "--workers", "0",
                        "--out", str(root.parent / "out"), *map(str, options)])


def test_published_table_on_real_images(voc_sample, tmp_path, capsys):
    code = script.main(["--dataset", "voc12", "--data-root", str(voc_sample / "VOC2012"), "--split", "train",
                        "--cams", str(voc_sample / "cams"), "--thresholds", *THRESHOLDS, "--workers", "2",
                        "--json", str(tmp_path / "scores.json")])
    report = json.loads((tmp_path / "scores.json").read_text())
    assert code == 0
    assert [row["threshold"] for row in report["curve"]] == [float(value) for value in THRESHOLDS]
    assert np.allclose([row["miou"] for row in report["curve"]], PUBLISHED, atol=0.01)
    assert report["best"] == report["curve"][4] and len(report["best"]["iou"]) == 10
    assert report["images"] == 8 and report["classes"] == 10
    assert "8 images, 10 classes occur" in capsys.readouterr().out


@pytest.mark.smoke
def test_label_maps_and_two_folders_side_by_side(own_data, tmp_path, capsys):
    run(own_data, "--masks", tmp_path / "perfect", tmp_path / "shifted", "--json", tmp_path / "scores.json",
        "--per-image", tmp_path / "rows.csv", "--confusion", "--pictures", 2, "--workers", 1)
    first, second = json.loads((tmp_path / "scores.json").read_text())["runs"]
    assert first["best"] == {"threshold": None, "miou": 100.0,
                             "iou": {"background": 100.0, "cat": 100.0, "dog": 100.0}}
    assert first["accuracy"] == first["mean_recall"] == 100.0
    table = 0
    for number in range(3):
        truth = np.array(Image.open(own_data / "masks" / f"photo{number}.png"))
        table = table + confusion(np.roll(truth % 255, number, 1), truth, 3)
    expected = scores(table)
    assert second["best"]["miou"] == pytest.approx(expected["miou"], abs=1e-4)
    assert second["precision"]["dog"] == pytest.approx(expected["precision"][2], abs=1e-4)
    output = capsys.readouterr().out
    difference = f"{expected['iou'][2] - 100:+.2f}"
    assert any(line.startswith("dog") and line.endswith(difference) for line in output.splitlines())
    rows = list(csv.DictReader(open(tmp_path / "rows.csv")))
    values = [float(row["miou"]) for row in rows]
    assert len(rows) == 6 and values == sorted(values) and rows[0]["image"] == "photo2"
    pictures = sorted((tmp_path / "out").rglob("*.png"))
    assert len([item for item in pictures if item.parent.name == "pictures"]) == 2
    assert len([item for item in pictures if item.name.startswith("confusion-")]) == 2
    assert all(Image.open(item).width > 100 for item in pictures)
    sheet = Image.open(tmp_path / "out" / "pictures" / "photo0.png")
    assert sheet.width == 4 * (320 + 4) + 4  # image, two overlays, truth; photo0, 30 x 20, as 320 x 213
    columns = [np.asarray(sheet.crop((left, 18, left + 320, 18 + 213))) for left in range(4, 1300, 324)]
    inside = np.s_[64:118, 54:90]  # the truth's cat but its outline: rows 4-11, columns 3-9, 10.67 times
    assert np.array_equal(columns[1][inside], columns[3][inside])
    assert not np.array_equal(columns[0][inside], columns[1][inside])
    background = np.s_[180:, 160:]
    assert np.array_equal(columns[0][background], columns[1][background])


def test_cam_details_agree_with_the_curve(own_data, tmp_path):
    rng = np.random.default_rng(1)
    for number, (height, width) in enumerate(SIZES):
        maps = rng.random((2, -(-height // 4), -(-width // 4))).astype(np.float32)
        write_cam(tmp_path / "cams", f"photo{number}", [0, 1], maps)
    run(own_data, "--cams", tmp_path / "cams", "--thresholds", "0.7", "0.5", "--json",
        tmp_path / "scores.json", "--per-image", tmp_path / "rows.csv", "--pictures", "1")
    report = json.loads((tmp_path / "scores.json").read_text())
    assert [row["threshold"] for row in report["curve"]] == [0.7, 0.5]
    assert report["images"] == 3 and report["accuracy"] > 0
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 4


def fill(size: tuple[int, int], value: int):
    return lambda path: write_mask(path, np.full(size, value, np.uint8), voc_palette())


def test_bad_predictions_stop_or_are_skipped(own_data, tmp_path, capsys):
    bad = tmp_path / "perfect" / "photo1.png"
    good = bad.read_bytes()
    for spoil, message in (
            (lambda path: path.unlink(), "no file for image photo1"),
            (fill((5, 6), 0), "photo1: the prediction is 5x6"),
            (fill(SIZES[1], 9), "photo1: the prediction has value 9"),
            (lambda path: path.write_bytes(good[:80]), "photo1.png: not a readable mask"),
            (lambda path: Image.new("I;16", (9, 9)).save(path), "photo1.png: a mask is a palette or 8-bit grey PNG")):
        bad.write_bytes(good)
        spoil(bad)
        with pytest.raises(InputError, match=f"{message}.*--skip-bad") as caught:
            run(own_data, "--masks", tmp_path / "perfect", "--workers", "1")
        assert "\n" not in str(caught.value)
        run(own_data, "--masks", tmp_path / "perfect", "--skip-bad", "--json", tmp_path / "scores.json")
        assert json.loads((tmp_path / "scores.json").read_text())["images"] == 2, message
        captured = capsys.readouterr()
        assert f"skipped: {tmp_path / 'perfect'}" in captured.err, message
        assert "2 images, 3 classes occur" in captured.out, message


def test_data_without_masks_reports_no_miou(own_data, tmp_path, capsys):
    for path in (own_data / "masks").iterdir():
        path.unlink()
    (own_data / "masks").rmdir()
    run(own_data, "--masks", tmp_path / "shifted", "--json", tmp_path / "scores.json", "--pictures", 1)
    assert json.loads((tmp_path / "scores.json").read_text())["best"] is None
    output = capsys.readouterr().out
    assert "no masks, so no mIoU is computed" in output and "accuracy" not in output
    sheet = Image.open(tmp_path / "out" / "pictures" / "photo0.png")
    assert sheet.width == 2 * (320 + 4) + 4  # the image and its overlay, no truth


def test_nothing_to_score_names_the_places(own_data, tmp_path):
    with pytest.raises(InputError, match="give --cams or --masks"):
        run(own_data, "--runs", tmp_path / "runs")
    with pytest.raises(InputError, match="nowhere"):
        run(own_data, "--masks", tmp_path / "nowhere")


def test_defaults_take_the_folders_that_hold_the_split(own_data, tmp_path):
    stages = tmp_path / "runs" / "folder"
    (stages / "train_seg").mkdir(parents=True)
    (tmp_path / "perfect").rename(stages / "train_seg" / "predictions")
    write_mask(stages / "make_pseudo" / "masks" / "of_another_split.png", np.zeros((4, 4), np.uint8),
               voc_palette())
    run(own_data, "--runs", tmp_path / "runs", "--json", tmp_path / "scores.json")
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["folder"] == str(stages / "train_seg" / "predictions")
    assert report["images"] == 3 and report["best"]["miou"] == 100.0


def test_as_a_script_a_mistake_is_one_line_and_torchvision_is_not_imported(own_data):
    """Importing torchvision takes seconds, and a table of ablations starts this script many times."""
    code = ("import runpy, sys\n"
            f"sys.argv = ['eval.py', '--dataset', 'folder', '--data-root', {str(own_data)!r}, '--split', 'nope']\n"
            "try:\n"
            f"    runpy.run_path({script.__file__!r}, run_name='__main__')\n"
            "finally:\n"
            "    print([name for name in ('torchvision', 'scipy') if name in sys.modules])\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(script.__file__).parent, capture_output=True,
                          text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --split nope")
    assert done.stderr.count("\n") == 1
    assert done.stdout.strip() == "[]"


def test_images_without_a_figure_stand_last_and_json_has_null(own_data, tmp_path):
    ignored = Image.fromarray(np.full(SIZES[0], 255, np.uint8))
    ignored.save(own_data / "masks/photo0.png")  # the first of the images
    run(own_data, "--masks", tmp_path / "shifted", "--per-image", tmp_path / "rows.csv", "--json", tmp_path / "a.json")
    rows = list(csv.DictReader(open(tmp_path / "rows.csv")))
    values = [float(row["miou"]) for row in rows]
    assert [row["image"] for row in rows][-1] == "photo0" and np.isnan(values[-1]) and values[:2] == sorted(values[:2])
    for number, size in enumerate(SIZES):
        Image.fromarray(np.full(size, 255, np.uint8)).save(own_data / f"masks/photo{number}.png")
    run(own_data, "--masks", tmp_path / "shifted", "--json", tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text and json.loads(text)["best"]["miou"] is None
