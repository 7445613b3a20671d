"""Image files are opened, checked and turned by one path; label maps by number and by colour, 254 classes at most."""
import json
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from clipwsss.datasets import build_dataset
from clipwsss.datasets.image_files import (MOST_PIXELS, check_image, check_mask, decode, exif_orientation,
                                           permuted_number, read_image, read_mask)
from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette
from test_datasets import fails, save_image, save_mask, write

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


@pytest.mark.smoke
def test_colours_of_the_palette_stand_for_numbers(tmp_path):
    path, palette = tmp_path / "a.png", voc_palette()
    numbers = np.array([[0, 1, 2, 255], [3, 3, 0, 1]], np.uint8)
    for mode in ("RGB", "RGBA"):
        Image.fromarray(palette[numbers]).convert(mode).save(path)
        assert np.array_equal(read_mask(path, n_classes=3), numbers), mode
    with pytest.raises(InputError, match=r"a.png: a mask is .*; colour \(128, 128, 0\) in 2 pixels belongs to no class"):
        read_mask(path, n_classes=2)
    own = palette.copy()
    own[1] = 200
    Image.fromarray(own[numbers]).save(path)
    assert np.array_equal(read_mask(path, n_classes=3, palette=own), numbers)
    with pytest.raises(InputError, match=r"colour \(200, 200, 200\) in 2 pixels .*class 1 is \(128, 0, 0\)"):
        read_mask(path, n_classes=3)
    Image.fromarray(numbers == 1).save(path)  # one bit a pixel
    assert read_mask(path, n_classes=1).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_values_of_another_scale_are_named(tmp_path):
    for values, told in (([0, 9], r"value 9 in the mask; valid are 0 \(background\), 1..3 and 255 \(ignore\)$"),
                         ([0, 85, 170, 255], r"values 85, 170 in the mask; .*class numbers times 85: divide them"),
                         ([0, 60, 120, 180], r"values 60, 120, 180 in the mask; .*times 60: divide them"),
                         ([0, 60, 121, 180, 7], r"values 7, 60, 120 in|values 7, 60, 121 in the mask")):
        save_mask(tmp_path / "a.png", np.array([values]))
        with pytest.raises(InputError, match=told):
            read_mask(tmp_path / "a.png", n_classes=3)


def test_a_palette_in_another_order_is_found(tmp_path):
    palette, path, values = voc_palette(), tmp_path / "a.png", np.array([0, 1])
    for colours, expected in ((palette, None), (palette[[1, 0, 2]], 0), (palette[[0, 2, 1]], 1),
                              (np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1), None),  # grey values
                              (np.array([[0, 0, 0], [255, 0, 0]], np.uint8), None)):  # colours of its own
        image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
        image.putpalette(colours.tobytes())
        image.save(path)
        assert permuted_number(path, palette, 2, values) == expected
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(path)
    assert permuted_number(path, palette, 2, values) is None


def test_every_data_set_refuses_more_classes_than_label_maps_hold(tmp_path):
    save_image(tmp_path / "images/a.jpg")
    (tmp_path / "labels.csv").write_text("image,labels\na,c1\n")
    (tmp_path / "classes.txt").write_text("".join(f"c{number}\n" for number in range(1, 256)))
    fails("classes.txt: 255 classes; 1 to 254 are possible", "folder", tmp_path, "train")
    save_image(tmp_path / "train2014/a.jpg")
    (tmp_path / "annotations").mkdir()
    content = {"images": [{"id": 1, "file_name": "a.jpg", "height": 12, "width": 20}], "annotations": [],
               "categories": [{"id": number, "name": f"c{number}"} for number in range(300)]}
    (tmp_path / "annotations/instances_train2014.json").write_text(json.dumps(content))
    fails("instances_train2014.json: 300 classes; 1 to 254 are possible", "coco14", tmp_path, "train")


def test_a_photograph_is_no_mask_however_little_is_read(tmp_path):
    save_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.png: a mask is a palette or 8-bit grey PNG"):
        check_mask(tmp_path / "a.png", (12, 20), 3, voc_palette(), 1000, all_bytes=False)


def test_the_colours_of_cvats_label_map(tmp_path):
    save_image(tmp_path / "images/a.jpg", (12, 20))
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,cat;d\u00f6g\n", encoding="utf-8")
    (tmp_path / "classes.txt").write_text("cat\nd\u00f6g\n", encoding="utf-8")
    pixels = np.zeros((12, 20, 3), np.uint8)
    pixels[:4] = (250, 50, 83)
    pixels[4:6] = (36, 179, 83)
    (tmp_path / "masks").mkdir()
    Image.fromarray(pixels).save(tmp_path / "masks/a.png")
    rows = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndo\u0308g:250,50,83::\nhat:1,2,3::\n"
    fails("colour .250, 50, 83. in 120 pixels belongs to no class", "folder", tmp_path, "train")
    path = tmp_path / "masks/labelmap.txt"
    for text, message in ((rows, "no line for cat; it names background, d\u00f6g, hat"),
                          (rows + "cat:250,50,83::\n", "cat has the colour of d\u00f6g"),
                          (rows + "cat:36,179\n", "5: 'cat:36,179' is not .name:red")):
        path.write_text(text, encoding="utf-8")
        fails(message, "folder", tmp_path, "train")
    path.write_text(rows + "cat:36,179,83::\n", encoding="utf-8")
    data = build_dataset("folder", tmp_path, "train")
    assert data.unused_masks == [] and data.palette[2].tolist() == [250, 50, 83]
    assert data.load_mask(0)[:, 0].tolist() == [2] * 4 + [1] * 2 + [0] * 6
