"""Label maps by number and by colour; what is out of range is named with what it looks like; 254 classes at most."""
import json

import numpy as np
import pytest
from PIL import Image

from clipwsss.datasets import build_dataset
from clipwsss.datasets.label_maps import check_mask, permuted_number, read_mask
from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette
from test_datasets import fails, save_image, save_mask


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
