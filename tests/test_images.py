"""Images are opened, checked and turned by one path: what the check takes can be read, however damaged its EXIF is."""
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from clipwsss.datasets import build_dataset
from clipwsss.datasets.images import MOST_PIXELS, check_image, decode, exif_orientation, read_image
from test_datasets import save_image, write

TALL = (12, 20)


def exif_block(*entries, order=b"II*\0\x08\0\0\0"):
    """An EXIF block of (tag, type, count, 4 bytes) entries, as cameras and programs write it, errors included."""
    return b"Exif\0\0" + order + struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4)


@pytest.mark.smoke
def test_each_orientation_is_undone_as_pillow_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (*TALL, 3), dtype=np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        Image.fromarray(pixels).save(path, exif=exif)
        with Image.open(path) as file:
            assert exif_orientation(file) == orientation
            expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
        assert np.array_equal(np.asarray(read_image(path, oriented=True)), expected), orientation
        assert check_image(path, True, MOST_PIXELS, all_bytes=True) == expected.shape[:2], orientation
        assert np.array_equal(np.asarray(read_image(path)), pixels), "as stored"
        tiff = tmp_path / f"{orientation}.tif"  # which Pillow turns itself
        Image.fromarray(pixels).save(tiff, tiffinfo={0x0112: orientation})
        for oriented in (True, False):
            assert np.array_equal(np.asarray(read_image(tiff, oriented)), expected), orientation
            assert check_image(tiff, oriented, MOST_PIXELS, all_bytes=False) == expected.shape[:2], orientation


def test_a_damaged_exif_block_neither_stops_nor_hides_the_turn(tmp_path):
    turn = (0x0112, 3, 1, b"\x06\0\0\0")
    for name, exif, size in (
            ("out_of_range", exif_block((0x0103, 4, 1, b"\xff\xff\xff\xff"), turn), (20, 12)),
            ("unknown_type", exif_block((0x010F, 99, 5, b"\xff\xff\xff\xff"), turn), (20, 12)),
            ("text_as_orientation", exif_block((0x0112, 2, 3, b"ab\0\0")), TALL),
            ("two_orientations", exif_block((0x0112, 3, 2, b"\x06\0\x06\0")), (20, 12)),
            ("zero", exif_block((0x0112, 3, 1, bytes(4))), TALL),
            ("no_tiff", b"Exif\0\0nonsense", TALL), ("cut", exif_block(turn)[:13], TALL), ("empty", b"Exif\0\0", TALL)):
        path = tmp_path / name / "images/a.jpg"
        save_image(path, TALL, exif=exif)
        write(tmp_path / name / "labels.csv", "image,labels\na,cat\n")
        write(tmp_path / name / "classes.txt", "cat\n")
        for skip_bad in (False, True):
            data = build_dataset("folder", tmp_path / name, "train", skip_bad=skip_bad)
            assert data.names == ["a"] and data.sizes[0] == data[0].image.shape[1:] == size, name


@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_pixels_that_the_check_takes_can_be_read(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "F"):
        path = tmp_path / f"{mode[0]}{len(mode)}.tif"
        Image.new(mode, TALL[::-1]).save(path)
        try:
            check_image(path, True, MOST_PIXELS, all_bytes=False)
        except ValueError:
            assert mode in ("I;16", "F"), mode
        else:
            assert read_image(path, True).mode == "RGB", mode
    with Image.open(tmp_path / "R3.tif") as file:
        assert decode(file, oriented=True).size == TALL[::-1]
