"""COCO's annotation file: tags, masks drawn from polygons and run lengths, bad annotations."""
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_datasets import fails, save_image, save_mask, write

from clipwsss.datasets import build_dataset, coco
from clipwsss.errors import InputError


SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 6.0, 2.0, 6.0]  # pixels (columns 2..7, rows 2..5)


@pytest.fixture
def coco_root(tmp_path) -> Path:
    """Two annotated images of 10 x 12 and one without annotation; ids 3 and 7 become classes 1 and 2."""
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg", "height": 10, "width": 12}
              for i in (9, 4, 5)]
    for image in images:
        save_image(tmp_path / "images/val2014" / image["file_name"], (10, 12), seed=image["id"])
    crowd = {"size": [10, 12], "counts": [0, 60, 60]}
    annotations = [
        {"image_id": 9, "category_id": 7, "segmentation": [SQUARE], "iscrowd": 0},
        {"image_id": 9, "category_id": 3, "segmentation": [[2, 2, 4, 2, 4, 6, 2, 6]], "iscrowd": 0},
        {"image_id": 9, "category_id": 3, "segmentation": crowd, "iscrowd": 1},
        {"image_id": 4, "category_id": 7, "segmentation": crowd, "iscrowd": 1}]
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": 7, "name": "bus"}, {"id": 3, "name": "cat"}]}
    write(tmp_path / "annotations/instances_val2014.json", json.dumps(content))
    return tmp_path


@pytest.mark.smoke
def test_coco_reads_tags_and_draws_masks(coco_root, capsys):
    data = build_dataset("coco14", coco_root, "val")
    assert data.names == [f"COCO_val2014_00000000000{i}" for i in (4, 9)] and data.classes == ["cat", "bus"]
    assert data.labels.tolist() == [[0, 1], [1, 1]] and data.splits == ("val",) and data.has_masks
    assert data.category_ids == [3, 7] and [data.image_ids[name] for name in data.names] == [4, 9]
    assert "1 of 3 images have no annotation and are left out" in capsys.readouterr().err
    expected = np.zeros((10, 12), np.uint8)
    expected[2:6, 2:8] = 2
    expected[2:6, 2:4] = 1  # drawn later
    assert np.array_equal(data.load_mask(1), expected)  # the crowd is background, as CLIMS scores it
    data = build_dataset("coco14", coco_root, "val", crowds="ignore")
    expected[:, :6] = np.where(expected[:, :6] > 0, expected[:, :6], 255)  # columns 0..5, below everything
    assert np.array_equal(data.load_mask(1), expected) and data[1].mask.unique().tolist() == [0, 1, 2, 255]
    data = build_dataset("coco14", coco_root, "val", crowds="class")
    expected = np.zeros((10, 12), np.uint8)
    expected[:, :6] = 1  # the crowd, below everything: it stands last in the file
    expected[2:6, 2:8] = 2  # the first annotation, on top of the second, which lies in it
    assert np.array_equal(data.load_mask(1), expected) and data.labels.tolist() == [[0, 1], [1, 1]]
    assert np.unique(data.load_mask(0)).tolist() == [0, 2]  # nothing but a crowd
    save_mask(coco_root / "pseudo/COCO_val2014_000000000009.png", np.ones((10, 12)))
    other = data.with_masks(coco_root / "pseudo", skip_bad=True)
    assert other[0].mask.unique().tolist() == [1]
    with pytest.raises(InputError, match="--crowds ignore: folder has no crowds, only coco14 has"):
        (coco_root / "images/train.jpg").write_bytes(next((coco_root / "images/val2014").iterdir()).read_bytes())
        write(coco_root / "labels.csv", "image,labels\ntrain.jpg,cat\n")
        write(coco_root / "classes.txt", "cat\n")
        build_dataset("folder", coco_root, "train", crowds="ignore")


def test_bad_coco_annotations(coco_root):
    path = coco_root / "annotations/instances_val2014.json"
    good = path.read_text()
    for change, pattern in (
            (lambda c: c["annotations"][0].update(category_id=99), r"annotations\[0\]: category 99 is not among"),
            (lambda c: c["annotations"][0].update(image_id=99), r"annotations\[0\]: image 99 is not among"),
            (lambda c: c["annotations"][0].update(segmentation=[[1.0, 2.0]]), r"\[0\]: a polygon is a list"),
            (lambda c: c["annotations"][2]["segmentation"].update(counts=[1]), r"\[2\]: run lengths do not add up"),
            (lambda c: c["annotations"][2]["segmentation"].update(size=[9, 9]), r"\[2\]: run lengths are for size"),
            (lambda c: c["annotations"][2]["segmentation"].update(counts="PP"), r"image 9\): .*run lengths"),
            (lambda c: c["annotations"][0].pop("category_id"), r"annotations\[0\] lacks one of category_id"),
            (lambda c: c["images"][0].update(height=11), r"run lengths are for size \[10, 12\], the image is \[11"),
            (lambda c: (c["images"][0].update(height=11), c["annotations"].pop(2)),
             r"000009.jpg: 10 x 12 .* \(image 9\) says 11 x 12"),
            (lambda c: c.pop("images"), r"no list 'images'")):
        content = json.loads(good)
        change(content)
        path.write_text(json.dumps(content))
        fails(pattern, "coco14", coco_root, "val")


def test_categories_of_one_name(coco_root):
    path = coco_root / "annotations/instances_val2014.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for category, name in zip(content["categories"], ("caf\u00e9", "cafe\u0301")):
        category["name"] = name
    path.write_text(json.dumps(content), encoding="utf-8")
    fails("several categories are called 'caf\u00e9'", "coco14", coco_root, "val")


def test_missing_coco_parts(coco_root):
    fails("instances_train2014.json: no such file", "coco14", coco_root, "train")
    fails("--split test: .* has val", "coco14", coco_root, "test")
    (coco_root / "annotations/instances_val2014.json").write_text("{")
    fails("instances_val2014.json: not a readable JSON file", "coco14", coco_root, "val")


def test_plain_run_lengths_by_hand():
    mask = np.array([[False, True, False], [True, False, False]])
    assert coco.encode_mask(mask) == {"size": [2, 3], "counts": [1, 2, 3]}
    assert np.array_equal(coco.decode_mask({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3)), mask)
    for full in (False, True):
        mask = np.full((2, 3), full)
        assert np.array_equal(coco.decode_mask(coco.encode_mask(mask), (2, 3)), mask)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_regions_equal_pycocotools():
    reference = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    for trial in range(300):
        size = tuple(int(side) for side in random.integers(1, 90, 2))
        points = random.uniform(-3, np.array(size[::-1]) + 3, (random.integers(3, 30), 2))
        points = points.round(2) if trial % 2 else points.round()
        points[1] = points[0]
        polygons = [points.ravel().tolist(), (points[:3] + 1).ravel().tolist()]
        expected = reference.decode(reference.merge(reference.frPyObjects(polygons, *size)))
        assert np.array_equal(coco.decode_mask(polygons, size), expected)
        packed = reference.encode(np.asfortranarray(expected))
        ours = coco.compress_mask(expected.astype(bool))
        assert ours == {"size": list(size), "counts": packed["counts"].decode()} and packed["size"] == ours["size"]
        assert np.array_equal(coco.decode_mask(ours, size), expected)
        plain = coco.encode_mask(expected.astype(bool))
        assert np.array_equal(coco.decode_mask(plain, size), expected)
        assert reference.frPyObjects(plain, *size)["counts"] == packed["counts"]


def test_bad_compressed_run_lengths():
    """What pycocotools would take in silence: wrong characters, a cut number, too few or too many pixels."""
    reference = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((40, 50), bool)
    mask[5:30, 10:44] = True
    good = coco.compress_mask(mask)["counts"]
    assert np.array_equal(coco.decode_mask({"size": [40, 50], "counts": good}, (40, 50)), mask)
    for text in ("", good[:-1], good[:10], good + "1", good + "o", "\u00e9" + good, "\n" + good, "0" + good, "zz"):
        with pytest.raises(ValueError, match="run lengths|Invalid RLE"):
            coco.decode_mask({"size": [40, 50], "counts": text}, (40, 50))
    random = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(map(chr, random.integers(48, 112, random.integers(1, 20))))
        with pytest.raises(ValueError, match="run lengths|Invalid RLE"):
            coco.decode_mask({"size": [40, 50], "counts": text}, (40, 50))
    assert reference.decode({"size": [40, 50], "counts": good}).sum() == mask.sum()


def test_compressed_run_lengths_name_the_package_that_they_need(coco_root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert len(build_dataset("coco14", coco_root, "val")) == 2  # polygons and plain run lengths need no package
    for use in (lambda: coco.decode_mask({"size": [2, 3], "counts": "123"}, (2, 3)),
                lambda: coco.compress_mask(np.ones((2, 3), bool))):
        with pytest.raises(ModuleNotFoundError, match="compressed run lengths need: pip install pycocotools"):
            use()


def test_a_binary_mask_is_no_list_of_polygons():
    mask = np.zeros((12, 20), bool)
    mask[3:9, 4:15] = True
    for rows in (mask.tolist(), mask.astype(int).tolist(), mask.astype(float).tolist()):
        assert np.array_equal(coco.decode_mask(rows, mask.shape), mask)
    square = [[2, 2, 8, 2, 8, 6, 2, 6]]
    assert coco.decode_mask(square, (12, 20)).sum() == 24, "polygons stay polygons"
    for wrong in (mask.T.tolist(), mask[:5].tolist(), [[[2, 2], [8, 2], [8, 6]]], [2, 2, 8, 2, 8, 6]):
        with pytest.raises((ValueError, TypeError)):
            coco.decode_mask(wrong, mask.shape)


def test_names_of_files_in_coco(coco_root, capsys):
    path = coco_root / "annotations/instances_val2014.json"
    content = json.loads(path.read_text())
    apart = "cafe\u0301.v 2"
    first, second, third = content["images"]
    (coco_root / "images/val2014" / first["file_name"]).rename(coco_root / "images/val2014" / f"{apart}.jpg")
    first["file_name"] = "caf\u00e9.v 2.jpg"  # the same name in another Unicode form
    save_image(coco_root / "images/val2014/sub/deep.jpg", (10, 12))
    second["file_name"] = "sub\\deep.jpg"  # as Windows writes it
    content["categories"][0]["name"] = "cafe\u0301"
    path.write_text(json.dumps(content))
    data = build_dataset("coco14", coco_root, "val")
    assert data.names == ["deep", "caf\u00e9.v 2"] and data.classes == ["cat", "caf\u00e9"] and data[1].mask.max() == 2
    save_image(coco_root / "images/val2014/deep.jpg", (10, 12))
    third["file_name"] = "deep.jpg"
    content["annotations"].append({"image_id": 5, "category_id": 3, "segmentation": [SQUARE]})
    path.write_text(json.dumps(content))
    fails("another image of the file is called deep too", "coco14", coco_root, "val")
    assert build_dataset("coco14", coco_root, "val", skip_bad=True).names == ["caf\u00e9.v 2"], "none of the two is kept"
