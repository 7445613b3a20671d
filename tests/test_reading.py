"""Images and masks are checked once, by path, size and time; what is no usable image is refused unread."""
import os

import numpy as np
import pytest
from PIL import Image

from clipwsss.datasets.reading import SMALLEST, Checked, read_image, read_mask
from clipwsss.errors import InputError


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.full((6, 9), 2, np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_memory_serves_unchanged_files_alone(picture, tmp_path, monkeypatch):
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or real(path))
    for reads in (2, 2, 4):  # an image and a mask: neither is known for the other
        checked = Checked(tmp_path / "memory.json")
        with checked.remembering():
            assert checked.image_size(picture, False) == (6, 9) and checked.mask(picture) == ((6, 9), [2])
        assert len(opened) == reads
        if len(opened) == reads == 2 and (tmp_path / "second").exists():
            os.utime(picture, (5, 5))
        (tmp_path / "second").touch()
    picture.unlink()
    with checked.remembering(), pytest.raises(FileNotFoundError):
        checked.image_size(picture, False)


def test_a_damaged_or_unwritable_memory_costs_time_alone(picture, tmp_path):
    (tmp_path / "memory.json").write_text("[1")
    for memory in (tmp_path / "memory.json", tmp_path / "a.png" / "memory.json", None):
        checked = Checked(memory)
        with checked.remembering():
            assert checked.image_size(picture, False) == (6, 9)


def test_a_known_file_is_refused_by_a_smaller_limit(picture, tmp_path):
    for most, good in ((54, True), (53, False)):
        checked = Checked(tmp_path / "memory.json", most)
        with checked.remembering():
            if good:
                assert checked.image_size(picture, False) == (6, 9)
            else:
                with pytest.raises(ValueError, match="6 x 9 pixels .H x W. are more than --max-pixels 53"):
                    checked.image_size(picture, False)


@pytest.mark.parametrize("pixels, message", [
    (np.zeros((SMALLEST - 1, 30), np.uint8), "3 x 30 pixels"), (np.zeros((9, 9), np.uint16), "8 bits a channel"),
    (np.zeros((9, 9), np.float32), "8 bits a channel"), (np.zeros((20, 30), np.uint8), "more than --max-pixels 599")])
def test_unusable_images_are_refused(tmp_path, pixels, message):
    path = tmp_path / "a.tif"
    Image.fromarray(pixels).save(path)
    with pytest.raises(InputError, match=f"a.tif: not a readable image .*{message}"):
        read_image(path, most=599)


def test_large_masks_are_refused_unread(picture):
    with pytest.raises(InputError, match="a.png: not a readable mask .*more than --max-pixels 53"):
        read_mask(picture, 53)
    assert (read_mask(picture, 54) == 2).all()
