"""What tables call images: exact names first, then the rules for other paths, cases, prefixes and numbers."""
from pathlib import Path

import pytest

from clipwsss.datasets.image_names import ImageNames, may_be_one
from clipwsss.errors import InputError

ROOT = Path("mydata")
FILES = ["sub/One.jpg", "my photo (1).png", "0012.jpg", "2007_000032.jpg", "caf\u00e9.jpg", "a b.jpg", "a_b.jpg", "100%25.jpg",
         "1a2b3c4d-x.jpg", "same.jpg", "same.png", "x/1.png", "y/1.png"]


@pytest.fixture(scope="module")
def names():
    return ImageNames((ROOT, ROOT / "images"), [ROOT / "images" / name for name in FILES])


@pytest.mark.smoke
def test_exact_names_win_and_others_are_told(names):
    for image, file, is_exact in (
            ("One.jpg", "sub/One.jpg", True), ("One", "sub/One.jpg", True), ("sub\\One.jpg", "sub/One.jpg", True),
            ("images/sub/One.jpg", "sub/One.jpg", True), ("cafe\u0301.jpg", "caf\u00e9.jpg", True), ("a b", "a b.jpg", True),
            ("100%25.jpg", "100%25.jpg", True), ("0012", "0012.jpg", True), ("1a2b3c4d-x", "1a2b3c4d-x.jpg", True),
            ("./images/sub/One.jpg", "sub/One.jpg", False), ("/photos/images/sub/One.jpg", "sub/One.jpg", False),
            ("C:\\Users\\me\\One.jpg", "sub/One.jpg", False), ("../One", "sub/One.jpg", False), ("ONE.JPG", "sub/One.jpg", False),
            ("/data/upload/3/8c1f2a3b-One.jpg", "sub/One.jpg", False), ("s3://bucket/a/One.jpg?v=2", "sub/One.jpg", False),
            ("/data/local-files/?d=my%20photo%20%281%29.png", "my photo (1).png", False),
            ("/data/upload/3/00ff00ff-my_photo_1.png", "my photo (1).png", False), ("d:/CAFE\u0301.JPG", "caf\u00e9.jpg", False),
            ("12", "0012.jpg", False), ("2007000032", "2007_000032.jpg", False)):
        assert names.find(image) == (ROOT / "images" / file, is_exact), image


def test_what_fits_none_or_several_is_refused(names):
    for image, pattern in (
            ("two.jpg", r"image 'two.jpg' is not in the folder images \(.jpg, "), ("One.png", "'One.png' is not in"),
            ("", "'' is not in"), ("/", "'/' is not in"), ("13", "'13' is not in"), ("A_B.jpg", "'A_B.jpg' may be a b.jpg and a_b.jpg"),
            ("same", "same.jpg and same.png have the same name"), ("c:/SAME.jpg", "same.jpg and same.png have the same name"),
            ("1.png", "mydata/images/x/1.png and mydata/images/y/1.png have the same name")):
        with pytest.raises(InputError, match=pattern):
            names.find(image)


def test_two_names_of_one_image():
    for first, second, expected in (
            ("one.jpg", "one", True), ("one.jpg", "./images/One.JPG", True), ("C:\\a\\one.jpg", "a/one.jpg", True),
            ("a/one.jpg", "b/one.jpg", False), ("c:/a/one.jpg", "d:/a/one.jpg", False), ("a(1).jpg", "a1.jpg", False),
            ("8c1f2a3b-one.jpg", "00ff00ff-one.jpg", False), ("x/1/one.jpg", "x/2/one.jpg", False)):
        assert may_be_one(first, second) == expected == may_be_one(second, first), (first, second)
