"""Corrections win over made masks, in make_pseudo.py and train_seg.py; they may change; bad ones are named."""
import csv

import numpy as np
import pytest
from PIL import Image

import train_seg
from clipwsss.datasets import build_dataset
from clipwsss.datasets.corrections import find_corrections
from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette, write_mask
from clipwsss.report.page import read_report
from test_make_pseudo import draw_world, masks_in, run


def test_corrected_masks_stand_for_the_made_ones_until_they_are_withdrawn(tmp_path, capsys):
    flags = [*draw_world(tmp_path / "data"), "--refine", "none", "--out", tmp_path / "out"]
    assert run(*flags) == 0
    made = masks_in(tmp_path / "out")
    fixed = np.zeros((44, 61), np.uint8)
    fixed[:10, :10] = 2
    write_mask(tmp_path / "fixed/im0.png", fixed, voc_palette())
    colors = voc_palette()[np.flipud(fixed)]  # as CVAT and GIMP may write it
    Image.fromarray(colors).save(tmp_path / "fixed/im3.png")
    write_mask(tmp_path / "fixed/other.png", fixed, voc_palette())
    kept = (tmp_path / "out/masks/im1.png").stat().st_mtime_ns
    capsys.readouterr()
    assert run(*flags, "--corrections", tmp_path / "fixed") == 0
    output = capsys.readouterr()
    assert "2 label maps win over the made ones" in output.out and "other.png: is no label map NAME.png of an image" in output.err
    now = masks_in(tmp_path / "out")
    assert np.array_equal(now["im0"], fixed) and np.array_equal(now["im3"], np.flipud(fixed))
    assert np.array_equal(now["im1"], made["im1"]) and (tmp_path / "out/masks/im1.png").stat().st_mtime_ns == kept

    # The quality list: the correction of im0 shows green, which its tags deny. The report holds all images.
    assert "quality of 4 label maps: 0 blank, 1 of 4 tagged classes without a pixel, 1 with a class" in output.out
    with open(tmp_path / "out/quality.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[1][0] == "im0" and rows[1][3:5] == ["red", "green"] and len(rows) == 5
    assert read_report(tmp_path / "out/report.html")["runs"][0]["quality"] == rows

    (tmp_path / "fixed/im0.png").unlink()
    assert run(*flags, "--corrections", tmp_path / "fixed") == 0
    now = masks_in(tmp_path / "out")
    assert np.array_equal(now["im0"], made["im0"]) and np.array_equal(now["im3"], np.flipud(fixed))


def test_the_segmenter_learns_the_corrected_masks(tmp_path):
    flags = draw_world(tmp_path / "data")[:4]
    fixed = np.full((44, 61), 2, np.uint8)
    write_mask(tmp_path / "fixed/im2.png", fixed, voc_palette())
    args = train_seg.parse(train_seg.get_parser(), [*flags, "--masks", str(tmp_path / "data/masks"), "--corrections",
                                                    str(tmp_path / "fixed")], "train_seg")
    learned = train_seg.training_data(args)
    assert np.array_equal(learned.load_mask(2), fixed)
    assert np.array_equal(learned.load_mask(1), build_dataset("folder", tmp_path / "data", "train").load_mask(1))


def test_bad_corrections_are_named_before_anything_is_written(tmp_path):
    draw_world(tmp_path / "data")
    data = build_dataset("folder", tmp_path / "data", "train")
    assert find_corrections(None, data) == {}
    (tmp_path / "fixed").mkdir()
    for spoil, message in ((None, "--corrections .*fixed: no label map NAME.png of an image"), (np.zeros((44, 60), np.uint8), "44 x 60, its image is 44 x 61"),
                           (np.full((44, 61), 7, np.uint8), "value 7 in the mask")):
        if spoil is not None:
            write_mask(tmp_path / "fixed/im1.png", spoil, voc_palette())
        with pytest.raises(InputError, match=message):
            find_corrections(tmp_path / "fixed", data)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_corrections(tmp_path / "nowhere", data)


def test_corrections_that_would_not_be_used_or_mean_other_classes(tmp_path, capsys):
    draw_world(tmp_path / "data")
    data = build_dataset("folder", tmp_path / "data", "train")
    fixed = tmp_path / "fixed"
    full = np.full((44, 61), 2, np.uint8)
    write_mask(fixed / "im1_mask.png", full, voc_palette())
    with pytest.raises(InputError, match="no label map NAME.png of an image of this split in this folder; it has im1_mask.png"):
        find_corrections(fixed, data)
    write_mask(fixed / "im0.png", full, voc_palette())
    (fixed / "im0.json").write_text("{}")
    capsys.readouterr()
    assert find_corrections(fixed, data) == {"im0": fixed / "im0.png"}
    told = capsys.readouterr()
    assert "1 label maps win" in told.out and f"{fixed / 'im0.json'}: is no label map" in told.err and "(2 such files)" in told.err
    assert f"note: --corrections {fixed}: 1 of 1 masks show no class that their image is tagged with" in told.err
    write_mask(fixed / "im0.PNG", full, voc_palette())
    with pytest.raises(InputError, match="im0.PNG and im0.png: both are label maps of image im0"):
        find_corrections(fixed, data)
    (fixed / "im0.PNG").unlink()
    write_mask(fixed / "im0.png", full, voc_palette()[[0, 2, 1]])  # as an editor that sorts its colours
    with pytest.raises(InputError, match="im0.png: its palette gives number 2 the colour of another class"):
        find_corrections(fixed, data)
