"""Masks against tags and palettes: what the check finds, what the scripts say, and files that nobody uses."""
import numpy as np
import pytest
from PIL import Image

from clipwsss.datasets import build_dataset
from clipwsss.datasets.__main__ import main
from clipwsss.datasets.base import find_contradictions
from clipwsss.pictures import voc_palette
from test_datasets import save_image, save_mask, write

SIZE = (12, 20)


@pytest.fixture
def mydata(tmp_path):
    """Four images of a cat; classes cat and dog."""
    for number in range(4):
        save_image(tmp_path / "images" / f"a{number}.jpg", SIZE)
    write(tmp_path / "labels.csv", "image,labels\n" + "".join(f"a{number}.jpg,cat\n" for number in range(4)))
    write(tmp_path / "classes.txt", "cat\ndog\n")
    return tmp_path


def mask(root, number, *values):
    labels = np.zeros(SIZE)
    for row, value in enumerate(values):
        labels[row] = value
    save_mask(root / f"masks/a{number}.png", labels)


def told(capsys, root):
    status = main(["check", str(root)])
    return status, capsys.readouterr().out


@pytest.mark.smoke
def test_masks_that_fit_are_not_mentioned(mydata, capsys):
    for number in range(4):
        mask(mydata, number, 1, 255)
    assert find_contradictions(build_dataset("folder", mydata, "train")) == ([], False)
    status, output = told(capsys, mydata)
    assert status == 0 and output.endswith("no errors found\n") and "4 with masks" in output


def test_masks_without_a_tagged_class_or_with_another(mydata, capsys):
    mask(mydata, 0, 1)
    mask(mydata, 1, 2)
    mask(mydata, 2, 255)
    first = mydata / "masks/a1.png"
    lines = [f"2 of 3 masks show no class that their image is tagged with (first: {first})",
             f"1 of 3 masks show a class that their image is not tagged with (first: {first} shows dog)"]
    assert find_contradictions(build_dataset("folder", mydata, "train")) == (lines, False)
    assert capsys.readouterr().err == f"note: {mydata}: {'; '.join(lines)}\n", "one note of the scripts"
    status, output = told(capsys, mydata)
    assert status == 0 and all(f"train: {line}\n" in output for line in lines)
    assert output.endswith("no file is bad; what does not fit is told above (2 lines on masks)\n")


def test_masks_of_0_and_255_are_an_error(mydata, capsys):
    for number in range(2):
        mask(mydata, number, 255)
    status, output = told(capsys, mydata)
    assert status == 2 and output.rstrip().endswith("they hold no class but 255, which is ignored: write 1 for the first class")


def test_a_palette_of_an_image_editor(mydata, capsys):
    mask(mydata, 0, 1)
    picture = Image.fromarray(np.ones(SIZE, np.uint8), "P")
    picture.putpalette(voc_palette()[[1, 0, 2]].tobytes())  # black is number 1
    picture.save(mydata / "masks/a1.png")
    _, output = told(capsys, mydata)
    assert "train: 1 of 2 masks have a palette that gives numbers the colours of other classes" in output
    assert f"(first: {mydata / 'masks/a1.png'}, number 1)" in output
    (mydata / "masks/a0.png").unlink()
    assert told(capsys, mydata)[0] == 2, "no mask is left whose palette fits"


def test_files_that_nobody_uses_are_named_with_the_reason(mydata, capsys):
    for name in ("a0.jpg", "a0.tif", "a0_mask.png", "A2.png", "b.png", "deep/a1.png"):
        save_image(mydata / "masks" / name, SIZE)
    for name in ("IMG_1.HEIC", "notes.txt", "Thumbs.db", ".hidden.jpg"):
        write(mydata / "images" / name, "")
    write(mydata / "Masks/a0.png", "")
    status, output = told(capsys, mydata)
    assert status == 2 and "no errors found" not in output and "Masks: not used; the names that are read are" in output
    for line in ("masks/a0.jpg, masks/a0.tif: not used, because a mask is a PNG file NAME.png",
                 "masks/a0_mask.png: not used, because it belongs to no image; rename it to a0.png",
                 "masks/A2.png: not used, because it belongs to no image; rename it to a2.png",
                 "masks/b.png: not used, because it belongs to no image",
                 "masks/deep/a1.png: not used, because masks lie in the folder masks, not below it",
                 "IMG_1.HEIC, notes.txt: not used, because images are .jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff"):
        assert line in output.splitlines(), line
    build_dataset("folder", mydata, "train")
    assert capsys.readouterr().err == (f"note: {mydata / 'masks/A2.png'}: is not used, because it belongs to no image; "
                                       "rename it to a2.png; 6 files there are not used\n")
    mask(mydata, 3, 1)
    assert told(capsys, mydata)[0] == 0, "one mask is used, the others are mentioned"


def test_turned_images_are_counted(mydata, capsys):
    exif = Image.Exif()
    exif[0x0112] = 8
    save_image(mydata / "images/a2.jpg", SIZE, exif=exif)
    _, output = told(capsys, mydata)
    assert "a2.jpg: turned as the EXIF tag says (1 images); their masks have to fit the turned image" in output


def test_a_skip_never_keeps_half_of_an_image(mydata, capsys):
    write(mydata / "labels.csv", "image,labels\na0,cat\na0.jpg,dog\na1,cat\na1,wolf\na2,cat\na2,dog,x\na3,dog\nimages/a3.jpg,dog\n")
    data = build_dataset("folder", mydata, "train", skip_bad=True)
    assert data.names == ["a0", "a3"] and data.labels.tolist() == [[1, 1], [0, 1]]
    output = capsys.readouterr().err
    assert "2 of 2 images have several rows in the table; their tags are joined" in output
    for image in ("a1.jpg", "a2.jpg"):
        assert f"image {image} is left out, because another of its rows is bad" in output


def test_names_in_other_unicode_forms_with_dots_blanks_and_back_slashes(tmp_path):
    apart, composed = "cafe\u0301", "café"
    for name in (apart, "my.photo v1.2", "back\\slash"):
        save_image(tmp_path / "images/sub" / f"{name}.jpg", SIZE)
    save_mask(tmp_path / f"masks/{composed}.png", np.ones(SIZE))
    write(tmp_path / "classes.txt", f"{apart}\n")
    (tmp_path / "labels.csv").write_text(f"image,labels\n{composed}.jpg,{composed}\nmy.photo v1.2,{apart}\n"
                                         f"back\\slash,{apart}\nsub\\my.photo v1.2.jpg,{apart}\n", encoding="utf-8")
    data = build_dataset("folder", tmp_path, "train")
    assert data.names == [composed, "my.photo v1.2", "back\\slash"] and data.masked == [True, False, False]
    for name in (apart, "my.photo v1.2", "back\\slash"):
        save_mask(tmp_path / f"pseudo/{name}.png", np.ones(SIZE))
    assert data.with_masks(tmp_path / "pseudo").masked == [True] * 3
