"""Results in others' formats: torchvision and pycocotools read them; mmsegmentation's documented folders; the VOC archive."""
import json
import sys
import tarfile

import numpy as np
import pytest
import torchvision
from PIL import Image

from clipwsss.datasets import build_dataset, coco
from clipwsss.datasets.exports import VOC_RESULTS, write_layout, write_submission
from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette, write_mask
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
        mask = np.zeros(data.sizes[index])
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


class Split:
    """The part of a data set that a submission uses."""
    names = ["a", "b"]
    sizes = [(5, 3), (4, 6)]
    classes = ["cat", "dog"]
    category_ids = ()
    image_ids = {}

    def __len__(self) -> int:
        return 2


def test_submission_archive_holds_the_checked_files(tmp_path):
    folder, palette = tmp_path / "predictions", voc_palette()
    write_mask(folder / "a.png", np.full((5, 3), 2, np.uint8), palette)
    write_mask(folder / "b.png", np.ones((4, 6), np.uint8), palette)
    write_mask(folder / "elsewhere.png", np.ones((4, 6), np.uint8), palette)
    write_submission(Split(), folder, tmp_path / "submit" / "results.tgz")
    with tarfile.open(tmp_path / "submit" / "results.tgz") as packed:
        assert sorted(packed.getnames()) == [f"{VOC_RESULTS}/a.png", f"{VOC_RESULTS}/b.png"]
        with Image.open(packed.extractfile(f"{VOC_RESULTS}/a.png")) as file:
            assert file.mode == "P" and np.array_equal(np.array(file), np.full((5, 3), 2))
    for spoil, message in ((np.zeros((6, 4), np.uint8), "6 x 4, its image is 4 x 6"),
                           (np.full((4, 6), 255, np.uint8), "value 255; valid are 0..2")):
        write_mask(folder / "b.png", spoil, palette)
        with pytest.raises(InputError, match=f"b.png: {message}"):
            write_submission(Split(), folder, tmp_path / "bad" / "results.tgz")
    (folder / "b.png").unlink()
    with pytest.raises(InputError, match="b.png: no such label map; every image"):
        write_submission(Split(), folder, tmp_path / "bad" / "results.tgz")
    assert not (tmp_path / "bad").exists()


def test_cocos_results_are_its_own_regions(tmp_path, monkeypatch):
    data = Split()
    folder = tmp_path / "predictions"
    maps = {"a": np.array([[1, 1, 0], [2, 0, 2], [0, 0, 2], [1, 0, 2], [1, 1, 1]]), "b": np.zeros((4, 6), int)}
    for name, labels in maps.items():
        write_mask(folder / f"{name}.png", labels.astype(np.uint8), voc_palette())
    write_submission(data, folder, tmp_path / "named.json")
    named = json.loads((tmp_path / "named.json").read_text())
    assert [(item["image_id"], item["category_id"]) for item in named] == [("a", 1), ("a", 2)]
    for item in named:
        assert np.array_equal(coco.decode_mask(item["segmentation"], (5, 3)), maps["a"] == item["category_id"])
    data.category_ids = [3, 90]
    data.image_ids = {"a": 42, "b": 7}
    write_submission(data, folder, tmp_path / "coco.json")
    numbered = json.loads((tmp_path / "coco.json").read_text())
    assert [(item["image_id"], item["category_id"]) for item in numbered] == [(42, 3), (42, 90)]
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pycocotools"):
        write_submission(data, folder, tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_cocos_own_code_reads_the_results(tmp_path, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    data = Split()
    labels = np.tile(np.uint8([0, 1, 2]), (5, 1))
    data.category_ids, data.image_ids, data.names = [3, 90], {"a": 42}, ["a"]
    write_mask(tmp_path / "a.png", labels, voc_palette())
    write_submission(data, tmp_path, tmp_path / "results.json")
    truth = coco.COCO()
    truth.dataset = {"images": [{"id": 42, "height": 5, "width": 3}], "categories": [{"id": 3}, {"id": 90}], "annotations": []}
    truth.createIndex()
    loaded = truth.loadRes(str(tmp_path / "results.json"))
    assert [np.array_equal(loaded.annToMask(item), labels == k) for k, item in enumerate(loaded.anns.values(), 1)] == [True] * 2
