"""COCO instances files as the masks of a folder: what --layout coco wrote comes back; what does not fit is named."""
import json

import numpy as np
import pytest
from PIL import Image

from clipwsss.datasets import build_dataset
from clipwsss.datasets.coco import encode_mask
from clipwsss.datasets.exports import write_layout
from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette, write_mask
from test_datasets import save_image, write


def test_masks_written_as_instances_come_back_from_the_file(tmp_path, capsys):
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for name in ("a", "b", "sub/c", "d"):
        save_image(root / "images" / f"{name}.png", size=(14, 20), seed=len(name))
    write(root / "labels.csv", "image,labels\na,cat\nb,dog\nc,cat;dog\nd,dog\n")
    write(root / "classes.txt", "dog\ncat\n")
    maps = {name: np.kron(rng.integers(0, 3, (7, 10)), np.ones((2, 2))).astype(np.uint8) for name in "abc"}
    for name, labels in maps.items():
        write_mask(tmp_path / "made" / f"{name}.png", labels, voc_palette())
    write_layout("coco", build_dataset("folder", root, "train"), tmp_path / "made", tmp_path / "coco")
    source = tmp_path / "coco/annotations/instances_train.json"
    content = json.loads(source.read_text())
    content["categories"].reverse()  # they are found by name
    (root / "masks").mkdir()
    target = root / "masks/instances_default.json"
    target.write_text(json.dumps(content))
    data = build_dataset("folder", root, "train")
    assert data.masked == [True, True, True, False] and data.has_masks and data.unused_masks == []
    for index, name in enumerate("abc"):
        assert np.array_equal(data.load_mask(index), maps[name]) and np.array_equal(data[index].mask, maps[name])
    assert data.load_mask(3) is None and (data[3].mask == 255).all()
    assert np.array_equal(data.with_masks(tmp_path / "made", skip_bad=True).load_mask(2), maps["c"])
    before = data.fingerprint()

    # As CVAT writes painted masks: run lengths, each marked as a crowd; an image of the tool that is not here.
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 2, "iscrowd": 1, "area": 6, "bbox": [0, 0, 3, 2],
                               "segmentation": encode_mask(maps["a"] == 1)}]
    content["images"].append({"id": 9, "file_name": "elsewhere/z.v1", "height": 5, "width": 5})
    target.write_text(json.dumps(content))
    data = build_dataset("folder", root, "train")
    assert np.array_equal(data.load_mask(0), 2 * (maps["a"] == 1)) and not data.load_mask(1).any()
    assert "image z.v1 is not in the folder images" in capsys.readouterr().err and data.fingerprint() != before

    def refused(message, change):
        changed = json.loads(json.dumps(content))
        change(changed)
        target.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=message):
            build_dataset("folder", root, "train")

    refused("category 'cow' is not in classes.txt; valid are dog, cat", lambda file: file["categories"][0].update(name="cow"))
    refused("says 20 x 14 .* for image a, which is 14 x 20",
            lambda file: (file["images"][0].update(height=20, width=14), file["annotations"].clear()))
    refused("image b is listed twice", lambda file: file["images"][0].update(file_name="x/b.jpg"))
    refused("image 77 is not among", lambda file: file["annotations"][0].update(image_id=77))
    Image.fromarray(maps["a"]).save(root / "masks/a.png")
    refused("the folder also has PNG masks", lambda file: None)
    (root / "masks/a.png").unlink()
    (root / "masks/second.json").write_text("{}")
    refused("masks come from one instances file", lambda file: None)
