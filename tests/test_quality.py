"""The quality list: hand-made masks of every kind, their order, the CSV, the line of counts, two readers' agreement."""
import csv
import os

import numpy as np
import pytest

from clipwsss.datasets import build_dataset
from clipwsss.pictures import voc_palette, write_mask
from clipwsss.report.page import quality_of
from clipwsss.report.quality import COLUMNS, mask_quality, problems_of, read_quality, write_quality
from test_datasets import save_image, write


@pytest.fixture
def world(tmp_path):
    """Eight tagged images of 20 x 20 pixels and one label map of each kind."""
    tags = {"good": "cat", "blank": "cat;dog", "none": "cat", "half": "cat;dog", "denied": "cat", "tiny": "cat", "full": "cat",
            "unlike": "cat"}
    for number, name in enumerate(tags):
        save_image(tmp_path / f"data/images/{name}.png", size=(20, 20), seed=number)
    write(tmp_path / "data/labels.csv", "image,labels\n" + "".join(f"{name},{value}\n" for name, value in tags.items()))
    write(tmp_path / "data/classes.txt", "cat\ndog\ncow\n")
    maps = {name: np.zeros((20, 20), np.uint8) for name in tags}
    for name in ("good", "half", "denied", "unlike"):
        maps[name][2:6, 2:12] = 1
    maps["none"][2:6, 2:12] = 3
    maps["denied"][0, :10] = 2
    maps["good"][9] = 255
    maps["tiny"][0, 0] = 1
    maps["full"][:] = 1
    return build_dataset("folder", tmp_path / "data", "train"), maps


def test_each_kind_is_named_and_the_worst_come_first(world, tmp_path, capsys):
    data, maps = world
    reference = np.zeros((20, 20), np.uint8)
    reference[2:6, 2:12] = 1
    references = {name: reference for name in maps} | {"unlike": np.roll(reference, 8, 1), "none": None}
    found = [mask_quality(data, index, maps[name], references[name]) for index, name in enumerate(data.names)]
    by_name = {item.image: item for item in found}
    assert by_name["unlike"].agreement == pytest.approx(2 / 18) and by_name["good"].agreement == 1
    assert by_name["none"].agreement is None and by_name["half"].missing == ("dog",)
    assert by_name["denied"].denied == ("dog",) and by_name["denied"].denied_share == pytest.approx(10 / 400)
    assert by_name["good"].foreground == pytest.approx(40 / 380)  # of the pixels that are not ignored
    write_quality(found, tmp_path / "quality.csv", "CAM")
    with open(tmp_path / "quality.csv", newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert tuple(head) == COLUMNS and [row[0] for row in rows] == [
        "blank", "none", "half", "denied", "tiny", "full", "unlike", "good"]
    problems = {row[0]: row[1] for row in rows}
    assert problems == {"good": "", "blank": "blank; unlike the CAM", "none": "no tagged class has a pixel; a class that the tags deny",
                        "half": "a tagged class has no pixel", "denied": "a class that the tags deny",
                        "tiny": "tiny; unlike the CAM", "full": "covers all; unlike the CAM", "unlike": "unlike the CAM"}
    assert "nan" not in (tmp_path / "quality.csv").read_text().lower() and rows[0][0] == "blank" and rows[1][6] == ""
    assert capsys.readouterr().out == (
        "quality of 8 label maps: 1 blank, 4 of 10 tagged classes without a pixel, 2 with a class that the tags deny, 1 tiny, "
        f"1 that cover all, 4 unlike the CAM; the worst first in {tmp_path}/quality.csv\n")


def test_folders_are_read_alike_and_untagged_images_lack_nothing(world, tmp_path):
    data, maps = world
    for name, labels in maps.items():
        write_mask(tmp_path / "made" / f"{name}.png", labels, voc_palette())
    references = data.with_masks(tmp_path / "made")
    found = read_quality(data, tmp_path / "made", references, 0)
    assert found == [mask_quality(data, index, maps[name], maps[name]) for index, name in enumerate(data.names)]
    assert all(item.agreement in (1, None) for item in found)
    data.entries = [entry._replace(tags=None) for entry in data.entries]
    plain = mask_quality(data, 0, maps["none"])
    assert plain.tags == plain.missing == plain.denied == () and plain.agreement is None
    assert problems_of(plain, "CAM") == []


def test_the_report_reads_the_list_whatever_images_are_called(world, tmp_path):
    data, maps = world
    names = [os.fsdecode(b"caf\xe9"), "two\u2028lines", "a,b"]  # the first is in no encoding that the locale knows
    found = [mask_quality(data, 0, maps["good"])._replace(image=name) for name in names]
    write_quality(found, tmp_path / "quality.csv", "CAM")
    assert {row[0] for row in quality_of(tmp_path / "quality.csv")[1:]} == set(names)
