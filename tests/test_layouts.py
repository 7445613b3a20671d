"""Images and masks as others read them: torchvision by loading them, mmsegmentation by its documented folders."""
import json

import numpy as np
import pytest
import torchvision
from PIL import Image

from clipwsss.datasets import build_dataset
from clipwsss.datasets.layouts import write_layout
from test_datasets import save_image, save_mask, write


@pytest.fixture
def made(tmp_path):
    """(a folder data set of a JPEG, a turned one, a PNG and an image without mask, the masks' folder)."""
    root, exif = tmp_path / "data", Image.Exif()
    exif[0x0112] = 6
    save_image(root / "images/plain.jpg", seed=1)
    save_image(root / "images/turned.JPEG", seed=2, exif=exif)
    save_image(root / "images/sub/other.png", seed=3)
    save_image(root / "images/left.jpg", seed=4)
    write(root / "labels.csv", "image,labels\nplain,cat\nturned,dog\nother,cat;dog\nleft,dog\n")
    write(root / "classes.txt", "cat\ndog\n")
    data = build_dataset("folder", root, "train")
    for index, name in enumerate(data.names[:3]):
        mask = np.zeros(data.image_size(index))
        mask[2:4, 3:6], mask[5] = 1 + index % 2, 255
        save_mask(tmp_path / "masks" / f"{name}.png", mask)
    return data, tmp_path / "masks"


def test_torchvisions_vocsegmentation_reads_it(made, tmp_path, capsys):
    data, masks = made
    write_layout("voc", data, masks, tmp_path / "voc")
    theirs = torchvision.datasets.VOCSegmentation(tmp_path / "voc", year="2012", image_set="train")
    assert len(theirs) == 3 and capsys.readouterr().out == f"3 images and masks in {tmp_path}/voc\n"
    for index, (image, mask) in enumerate(theirs):
        assert image.size == mask.size == data.load_image(index).size and mask.mode == "P"
        assert np.array_equal(np.asarray(mask), np.asarray(Image.open(masks / f"{data.names[index]}.png")))
        difference = np.asarray(image, float) - np.asarray(data.load_image(index), float)
        assert np.abs(difference).mean() < (1e-9 if data.names[index] == "plain" else 40)
    copied = tmp_path / "voc/VOCdevkit/VOC2012/JPEGImages/plain.jpg"
    assert copied.read_bytes() == data.entries[0].image.read_bytes() and not copied.is_symlink()


def test_mmsegmentations_folders(made, tmp_path):
    """BaseSegDataset lists img_path by img_suffix .jpg and finds ann_path/NAME.png; detectron2 pairs likewise."""
    data, masks = made
    write_layout("mmseg", data, masks, tmp_path / "mm")
    images = sorted(path.name for path in (tmp_path / "mm/img_dir/train").iterdir())
    assert images == ["other.jpg", "plain.jpg", "turned.jpg"]
    assert sorted(path.stem for path in (tmp_path / "mm/ann_dir/train").iterdir()) == [name[:-4] for name in images]
    assert (tmp_path / "mm/train.txt").read_text() == "plain\nturned\nother\n"
    info = json.loads((tmp_path / "mm/metainfo.json").read_text())
    assert info["classes"] == ["background", "cat", "dog"] and info["reduce_zero_label"] is False
    assert info["palette"] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]] and len(info["palette"]) == len(info["classes"])
    assert all(Image.open(path).format == "JPEG" for path in (tmp_path / "mm/img_dir/train").iterdir())
