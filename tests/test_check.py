"""The check of a folder: counts, what comes together, every problem of every split at once, exit status."""
import os

import numpy as np
import pytest

from clipwsss.datasets.__main__ import main
from clipwsss.errors import InputError
from test_datasets import save_image, save_mask, write


@pytest.fixture
def mydata(tmp_path):
    """30 images: a boat is never without water, half have a car; five are of split val, one has a mask."""
    root, rows = tmp_path / "mydata", []
    for number in range(30):
        save_image(root / "images" / f"i{number}.png", (6, 9 + number))
        labels = "boat;water" if number < 20 else "water" if number < 22 else "car"
        rows.append(f"i{number}.png,{labels},{'val' if number % 6 == 5 else 'train'}")
    write(root / "labels.csv", "\n".join(["image,labels,split", *rows]))
    write(root / "classes.txt", "boat: ship\nwater\ncar\n")
    save_mask(root / "masks/i5.png", np.ones((6, 14)))
    return root


def told(capsys, root, status=0):
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    assert main(["check", str(root)]) == status
    assert before == sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    return capsys.readouterr().out.splitlines()


def test_counts_and_advice(mydata, capsys):
    lines = told(capsys, mydata)
    assert lines[0] == ("train: 25 images, 0 with masks; sizes (H x W): smallest 6 x 9, median 6 x 23, "
                        "largest 6 x 37")
    assert lines[1].startswith("val: 5 images, 1 with masks; ")
    assert [line.split() for line in lines[2:6]] == [["images", "of", "train", "val"], ["boat", "17", "3"],
                                                     ["water", "19", "3"], ["car", "6", "2"]]
    assert lines[7:] == [
        "to improve the masks:",
        "boat: 20 of its 20 images also show water, so the two cannot be told apart: add images of boat alone",
        "water: 20 of its 22 images also show boat, so the two cannot be told apart: add images of water alone",
        "car (8): fewer than 20 images, too few for good maps: add images or drop the class",
        "", "no errors found"]


def test_what_stops_scripts_or_costs_time(mydata, capsys):
    table = (mydata / "labels.csv").read_text().replace(",train", ",one").replace(";water", "").replace(",water", ",boat")
    (mydata / "labels.csv").write_text(table.replace(",car", ",boat;water") + "\ni5,boat,one\n")
    (mydata / "classes.txt").write_text("boat\nwater\ncar\n")
    for number in range(7):
        save_image(mydata / "images" / f"other{number}.jpg", (4, 4))
    save_image(mydata / "images/i7.png", (6, 1001))
    lines = told(capsys, mydata)
    for expected in (
            "boat is in 31 of 31 images: add some images without it",
            "water (8), car (0): fewer than 20 images, too few for good maps: add images or drop the class",
            "other0.jpg, other1.jpg, other2.jpg, other3.jpg, other4.jpg and 2 more: not used, because no row of the "
            "table names the image or one of its files is bad",
            "i5: in more than one split", "i7: the long side has over 1000 pixels; smaller copies are much faster and give masks as good",
            "no split is called train: name the split to train on by --split"):
        assert expected in lines
    assert lines[-3].startswith("no class has synonyms, which --method pole chooses from: ")


def test_every_problem_of_every_split_in_one_pass(mydata, capsys):
    with open(mydata / "labels.csv", "a") as table:
        table.write("\ni1,cat,train\ni2,boat\nlost,boat,val\ni3,boat,train\n")
    (mydata / "images/i5.png").write_bytes(b"no picture")
    os.truncate(mydata / "images/i0.png", 60)
    lines = told(capsys, mydata, 2)
    problems = lines[lines.index("", 7) + 1:]
    assert len(problems) == 7
    for place, what in (("labels.csv:32", "unknown class 'cat'"), ("labels.csv:33", "a value is missing"),
                        ("labels.csv:34", "image 'lost' is not in"),
                        ("labels.csv:3:", "image i1.png is left out"), ("labels.csv:4:", "image i2.png is left out"),
                        ("i0.png", "not a readable image"), ("i5.png", "not a readable image")):
        assert sum(place in line and what in line for line in problems) == 1, place


def test_a_folder_without_a_good_row_names_all(mydata, capsys):
    write(mydata / "labels.csv", "image,labels\na,boat\nb,boat\nc,wter\n")
    assert len(told(capsys, mydata, 2)) == 3
    write(mydata / "labels.csv", "image,labels\na\nb,boat,x\n")
    assert [line.partition(": ")[0][-5:] for line in told(capsys, mydata, 2)] == ["csv:2", "csv:3"]
    (mydata / "classes.txt").unlink()
    write(mydata / "labels.csv", "image,labels\ni1,boat\ni2,car;water\n")
    assert told(capsys, mydata, 2)[0].partition(": ")[2].startswith(
        "no such file; write one class a line (the tags name boat, car, water), or let `python -m clipwsss.datasets check ")
    with pytest.raises(InputError, match="task: 'look' is not one of check"):
        main(["look", str(mydata)])


def test_classes_are_written_on_request_and_never_over_a_file(mydata, capsys):
    path, kept = mydata / "classes.txt", (mydata / "classes.txt").read_bytes()
    with pytest.raises(InputError, match="--write-classes: .*classes.txt exists and is kept as it is"):
        main(["check", str(mydata), "--write-classes"])
    assert path.read_bytes() == kept
    path.unlink()
    good = (mydata / "labels.csv").read_text()
    for row, pattern in (("i1,a,train,x", "labels.csv:32: a value is missing"), ("i1,a:b,train", "'a:b' has a colon"),
                         ("i1,#a,train", r"classes.txt is not written:1: '#a' is not a class"),
                         ("i1,background,train", "classes.txt is not written:1: leave background out")):
        write(mydata / "labels.csv", f"{good}\n{row}\n")
        with pytest.raises(InputError, match=pattern):
            main(["check", str(mydata), "--write-classes"])
        assert not path.exists(), row
    write(mydata / "labels.csv", good)
    assert main(["check", str(mydata), "--write-classes"]) == 0
    assert capsys.readouterr().out.startswith(f"written: {path}, 3 classes\n\ntrain: 25 images")
    assert path.read_text() == "boat\ncar\nwater\n"


def test_classes_of_a_table_with_blanks_and_of_a_tree(tmp_path, capsys):
    table = "image_name,tags\na,haze primary\nb,clear primary water\nc,primary\nd,haze water\ne,clear water\n"
    write(tmp_path / "one/labels.csv", table)
    write(tmp_path / "two/labels.csv", "image_name,tags\na,hot dog\nb,cat\n")
    for folder, classes in (("one", "clear\nhaze\nprimary\nwater\n"), ("two", "cat\nhot dog\n")):
        for name in "abcde" if folder == "one" else "ab":
            save_image(tmp_path / folder / "train" / f"{name}.jpg")
        assert main(["check", str(tmp_path / folder), "--write-classes"]) == 0
        assert (tmp_path / folder / "classes.txt").read_text() == classes
    assert capsys.readouterr().out.count("blanks separate the labels, as in 'clear primary water'") == 1
    for name in ("train/cat/a.jpg", "val/dog/b.jpg"):
        save_image(tmp_path / "three" / name)
    assert main(["check", str(tmp_path / "three"), "--write-classes"]) == 0
    assert (tmp_path / "three/classes.txt").read_text() == "cat\ndog\n"


def test_the_error_carries_all_problems():
    assert InputError("one").problems == ["one"] and str(InputError("both", ["one", "two"])) == "both"
