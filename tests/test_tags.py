"""Tables of tags: every form gives the same rows; what is wrong is named by its line; trees of class folders."""
import json

import pytest

from clipwsss.datasets import build_dataset
from clipwsss.datasets.tags import read_tags
from clipwsss.errors import InputError
from test_datasets import fails, save_image, write

ROWS = [("one.jpg", {"cat"}, "train"), ("two.png", {"cat", "hot dog"}, "val")]
COCO = {"images": [{"id": 7, "file_name": "one.jpg"}, {"id": 2, "file_name": "two.png", "width": 4}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "hot dog", "supercategory": "food"}],
        "annotations": [{"image_id": 7, "category_id": 5, "bbox": [0, 0, 1, 1]}, {"image_id": 2, "category_id": 9},
                        {"image_id": 2, "category_id": 5}, {"image_id": 2, "category_id": 5}]}


@pytest.mark.smoke
def test_every_form_gives_the_same_rows(tmp_path):
    path = tmp_path / "labels.txt"
    for text in (
            "image,labels,split\none.jpg,cat,train\ntwo.png,hot dog;cat,val\n",
            '\ufeff"Image" ; "Labels";"Split"\r\none.jpg; cat;train\r\n\r\ntwo.png;"hot dog;cat ";val\r\n',
            'filename,split,labels,width\none.jpg,train,cat,4\ntwo.png, val,"hot dog, cat",3\n',
            "image,labels,split\none.jpg,['cat'],train\ntwo.png,\"['hot dog', 'cat']\",val\n",
            "image,labels,split\none.jpg,['cat'],train\ntwo.png,['hot dog' 'cat'],val\n",
            "image\tcat\thot dog\tsplit\none.jpg\t1\t0\ttrain\ntwo.png\t1.0\t1\tval\n",
            "split,file,hot dog,cat\ntrain,one.jpg,,True\nval,two.png,1,1\n",
            '{"image": "one.jpg", "labels": ["cat"]}\n\n{"file_name": "two.png", "tags": "hot dog;cat", "split": "val"}\n',
            '[{"image": "one.jpg", "cat": 1, "hot dog": 0}, {"image": "two.png", "cat": true, "hot dog": 1, "split": "val"}]'):
        path.write_text(text, encoding="utf-8")
        rows, problems, *_ = read_tags(path)
        assert [row[:3] for row in rows] == ROWS and problems == [], text
        assert all(str(path) in row.where for row in rows), text


def test_cocos_tables_need_no_regions(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(COCO))
    rows, problems, *_ = read_tags(path)
    assert [row[:2] for row in rows] == [row[:2] for row in ROWS] and problems == []
    assert rows[0].where == f"{path} (image 7)"
    path.write_text(json.dumps(COCO | {"annotations": [{"image_id": 3, "category_id": 5}]}))
    with pytest.raises(InputError, match="labels.json: an annotation of an image or category that is not in the file: 3"):
        read_tags(path)
    path.write_text(json.dumps({"annotations": []}))
    with pytest.raises(InputError, match="labels.json: no list 'categories'"):
        read_tags(path)


def test_a_single_column_tags_by_folders(tmp_path):
    for text, line in (("cat/one.jpg\nhot dog\\two.png\n", 1), ("image\ncat/one.jpg\nimages/hot dog/two.png\n", 2)):
        write(tmp_path / "labels.csv", text)
        rows, *_ = read_tags(tmp_path / "labels.csv")
        assert [item.labels for item in rows] == [{"cat"}, {"hot dog"}] and rows[0].where.endswith(f":{line}"), text


def test_what_is_wrong_is_named_by_its_line(tmp_path):
    for text, pattern in (
            ("image,labels\na,cat,dog\n", r"labels.csv:2: a value is missing, or there are too many \(separate labels by ;"),
            ("image,lables\na,cat\n", r"labels.csv:2: lables is 'cat'; the column of a class holds 1 or 0, and a column"),
            ("image,labels,split\na,cat,\n", r"labels.csv:2: image a has no split"),
            ("image,labels\n,cat\n", r"labels.csv:2: no image is named"),
            ("name,labels\na,cat\n", r"labels.csv:1: the first line must be `image,labels`, .* it is 'name,labels'"),
            ("", "labels.csv: no image is listed"),
            ('image,labels\n"a,cat\n', r"labels.csv:2: a value is missing"),
            ('{"image": "a", "labels": ["cat"]\n', r"labels.csv:1: not JSON: Expecting"),
            ('[["a"], 3]', r'labels.csv: \[0\]: expected {"image": "one.jpg", "labels": \["cat"\]}'),
            ('{"labels": ["cat"]}', r"labels.csv:1: no image is named"),
            ('{"image": "a", "labels": [3]}', r"labels.csv:1: labels are \[3\], not a list of names"),
            ('{"image": "a", "labels": {"cat": 1}}', r"labels.csv:1: labels are {'cat': 1}, not a list"),
            ('{"image": "a", "labels": null}', r"labels.csv:1: a value is missing")):
        write(tmp_path / "labels.csv", text)
        with pytest.raises(InputError, match=pattern) as caught:
            read_tags(tmp_path / "labels.csv")
        assert "\n" not in str(caught.value), text


def test_a_tree_of_class_folders_needs_no_table(tmp_path):
    for name in ("cat/one.jpg", "hot dog/two.png", ".thumbs/cat/one.jpg"):
        save_image(tmp_path / "images" / name)
    fails(r"classes.txt: no such file; write one class a line \(the tags name cat, hot dog\)", "folder", tmp_path, "train")
    write(tmp_path / "classes.txt", "cat\nhot dog\n")
    data = build_dataset("folder", tmp_path, "train")
    assert data.names == ["one", "two"] and data.labels.tolist() == [[1, 0], [0, 1]]
    write(tmp_path / "labels.csv", "image,labels\ncat/one.jpg,cat;hot dog\nimages/hot dog/two.png,hot dog\n")
    assert build_dataset("folder", tmp_path, "train").labels.tolist() == [[1, 1], [0, 1]]
    save_image(tmp_path / "images/hot dog/one.png")
    fails("one.jpg and one.png have the same name", "folder", tmp_path, "train")
    write(tmp_path / "labels.jsonl", "")
    fails("labels.csv and labels.jsonl: both exist; keep one", "folder", tmp_path, "train")


def test_flat_images_need_a_table(tmp_path):
    save_image(tmp_path / "images/one.jpg")
    fails("labels.csv: no such file", "folder", tmp_path, "train")


def test_a_table_beside_folders_of_splits_takes_their_splits(tmp_path):
    for name in ("train/one.jpg", "train/three.jpg", "valid/two.png"):
        save_image(tmp_path / name)
    write(tmp_path / "classes.txt", "cat\n")
    write(tmp_path / "labels.csv", "image,labels\none.jpg,cat\nTWO.png,cat\nthree,cat\n")
    assert build_dataset("folder", tmp_path, "train").names == ["one", "three"]
    assert build_dataset("folder", tmp_path, "val").names == ["two"]
    write(tmp_path / "labels.csv", "image,labels,split\none.jpg,cat,train\ntwo.png,cat,train\n")
    assert build_dataset("folder", tmp_path, "train").names == ["one", "two"], "the table's own splits win"
    write(tmp_path / "labels.csv", "image,labels\nfour.jpg,cat\n")
    fails("image 'four.jpg' is not in the folder train, valid", "folder", tmp_path, "train")
