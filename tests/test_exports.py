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
from clipwsss.datasets.instances import image_instances, read_instances, write_yolo
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


def test_regions_are_outlined_exactly(tmp_path):
    """COCO's rule, ours and pycocotools', draws the pixels that were outlined: holes, corners that touch, specks."""
    rng = np.random.default_rng(0)
    for trial in range(120):
        size = tuple(rng.integers(4, 14, 2))
        labels = (rng.integers(0, 3, size) if trial % 2 else rng.random(size) < 0.8).astype(np.uint8)
        labels[rng.random(size) < 0.05] = 255
        write_mask(tmp_path / "one.png", labels, voc_palette())
        _, stated, ignored, instances = image_instances(tmp_path, ["one"], 0)
        drawn = np.zeros(size, np.uint8)
        for label, polygon, area, (x, y, width, height) in instances:
            region = coco.decode_mask([polygon.ravel().tolist()], size)
            assert region.sum() == area and not drawn[region].any()
            assert region[y:y + height, x:x + width].sum() == area and region[y].any() and region[:, x].any()
            drawn[region] = label
        assert stated == size and ignored == (labels == 255).sum()
        assert np.array_equal(drawn, np.where(labels == 255, 0, labels))
    ring = np.pad(np.zeros((1, 2), np.uint8), 1, constant_values=1)
    write_mask(tmp_path / "ring.png", ring, voc_palette())
    (instance,) = image_instances(tmp_path, ["ring"], 0).instances
    assert instance.polygon.tolist() == [[0, 0], [1, 1], [1, 2], [3, 2], [3, 1], [1, 1], [0, 0], [4, 0], [4, 3], [0, 3]]


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_cocos_own_code_reads_the_instances_file(made, tmp_path, capsys):
    data, masks = made
    write_layout("coco", data, masks, tmp_path / "out")
    output = capsys.readouterr()
    assert f"3 images and masks in {tmp_path}/out" in output.out and "3 of 3 label maps" in output.err
    path = tmp_path / "out/annotations/instances_train.json"
    content = json.loads(path.read_text())
    assert content.keys() == {"info", "licenses", "images", "categories", "annotations"}
    assert content["categories"] == [{"id": 1, "name": "cat", "supercategory": ""}, {"id": 2, "name": "dog", "supercategory": ""}]
    assert content["annotations"][0] == {"id": 1, "image_id": 1, "category_id": 1, "area": 6, "bbox": [3, 2, 3, 2],
                                         "iscrowd": 0, "segmentation": [[3, 2, 6, 2, 6, 4, 3, 4]]}
    theirs = pytest.importorskip("pycocotools.coco").COCO(path)
    for number, image in theirs.imgs.items():
        assert Image.open(tmp_path / "out/images/train" / image["file_name"]).size == (image["width"], image["height"])
        mask = np.array(Image.open(masks / image["file_name"].replace(".jpg", ".png")))
        drawn = sum(theirs.annToMask(item) * item["category_id"] for item in theirs.imgToAnns[number])
        assert np.array_equal(drawn, np.where(mask == 255, 0, mask))


def test_yolos_labels_are_shares_of_the_image(tmp_path):
    labels = np.zeros((4, 10), np.uint8)
    labels[1:3, 5:10] = 2
    write_mask(tmp_path / "day/one.png", labels, voc_palette())
    write_mask(tmp_path / "two.png", np.zeros((4, 10), np.uint8), voc_palette())
    write_yolo(read_instances(tmp_path, ["day/one", "two"]), ["cat", "a: dog"], tmp_path / "out")
    assert (tmp_path / "out/labels/day/one.txt").read_text() == "1 0.5 0.25 1 0.25 1 0.75 0.5 0.75\n"
    assert (tmp_path / "out/labels/two.txt").read_text() == ""
    assert (tmp_path / "out/data.yaml").read_text().endswith('names:\n  0: "cat"\n  1: "a: dog"\n')


def test_cvats_form_of_voc(made, tmp_path):
    """labelmap.txt and ImageSets/Segmentation/default.txt beside SegmentationClass/, as CVAT's manual shows them."""
    write_layout("voc", *made, tmp_path)
    root = tmp_path / "VOCdevkit/VOC2012"
    assert (root / "labelmap.txt").read_text() == ("# label:color_rgb:parts:actions\nbackground:0,0,0::\n"
                                                   "cat:128,0,0::\ndog:0,128,0::\n")
    assert (root / "ImageSets/Segmentation/default.txt").read_text() == "plain\nturned\nother\n"
