"""The VOC server's archive and COCO's results: the checked files at their places; what would be refused."""
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from clipwsss.datasets import coco_masks
from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette, write_mask
from clipwsss.segment.submission import FOLDER, pack


class Split:
    """The part of a data set that a submission uses."""
    names, classes, category_ids, image_ids = ["a", "b"], ["cat", "dog"], (), {}

    def __len__(self) -> int:
        return 2

    def image_size(self, index: int) -> tuple[int, int]:
        return (4, 6) if index else (5, 3)


def test_submission_archive_holds_the_checked_files(tmp_path):
    folder, palette = tmp_path / "predictions", voc_palette()
    write_mask(folder / "a.png", np.full((5, 3), 2, np.uint8), palette)
    write_mask(folder / "b.png", np.ones((4, 6), np.uint8), palette)
    write_mask(folder / "elsewhere.png", np.ones((4, 6), np.uint8), palette)
    pack(Split(), folder, tmp_path / "submit" / "results.tgz")
    with tarfile.open(tmp_path / "submit" / "results.tgz") as packed:
        assert sorted(packed.getnames()) == [f"{FOLDER}/a.png", f"{FOLDER}/b.png"]
        with Image.open(packed.extractfile(f"{FOLDER}/a.png")) as file:
            assert file.mode == "P" and np.array_equal(np.array(file), np.full((5, 3), 2))
    for spoil, message in ((np.zeros((6, 4), np.uint8), "6 x 4, its image is 4 x 6"),
                           (np.full((4, 6), 255, np.uint8), "value 255; valid are 0..2")):
        write_mask(folder / "b.png", spoil, palette)
        with pytest.raises(InputError, match=f"b.png: {message}"):
            pack(Split(), folder, tmp_path / "bad" / "results.tgz")
    (folder / "b.png").unlink()
    with pytest.raises(InputError, match="b.png: missing"):
        pack(Split(), folder, tmp_path / "bad" / "results.tgz")
    assert not (tmp_path / "bad").exists()


def test_cocos_results_are_its_own_regions(tmp_path):
    data, folder = Split(), tmp_path / "predictions"
    maps = {"a": np.array([[1, 1, 0], [2, 0, 2], [0, 0, 2], [1, 0, 2], [1, 1, 1]]), "b": np.zeros((4, 6), int)}
    for name, labels in maps.items():
        write_mask(folder / f"{name}.png", labels.astype(np.uint8), voc_palette())
    pack(data, folder, tmp_path / "named.json")
    named = json.loads((tmp_path / "named.json").read_text())
    assert [(item["image_id"], item["category_id"]) for item in named] == [("a", 1), ("a", 2)]
    for item in named:
        assert np.array_equal(coco_masks.decode(item["segmentation"], (5, 3)), maps["a"] == item["category_id"])
    data.category_ids, data.image_ids = [3, 90], {"a": 42, "b": 7}
    pack(data, folder, tmp_path / "coco.json")
    numbered = json.loads((tmp_path / "coco.json").read_text())
    assert [(item["image_id"], item["category_id"]) for item in numbered] == [(42, 3), (42, 90)]


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_cocos_own_code_reads_the_results(tmp_path, capsys):
    coco, reference = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    for share in (0, 0.02, 0.5, 0.9, 1):
        mask = random.random((37, 301)) < share
        ours, theirs = coco_masks.encode(mask), reference.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert ours["counts"].encode() == theirs["counts"] and ours["size"] == theirs["size"]
        assert np.array_equal(coco_masks.decode(ours, mask.shape), mask)
    data, labels = Split(), np.tile(np.uint8([0, 1, 2]), (5, 1))
    data.category_ids, data.image_ids, data.names = [3, 90], {"a": 42}, ["a"]
    write_mask(tmp_path / "a.png", labels, voc_palette())
    pack(data, tmp_path, tmp_path / "results.json")
    truth = coco.COCO()
    truth.dataset = {"images": [{"id": 42, "height": 5, "width": 3}], "categories": [{"id": 3}, {"id": 90}], "annotations": []}
    truth.createIndex()
    loaded = truth.loadRes(str(tmp_path / "results.json"))
    assert [np.array_equal(loaded.annToMask(item), labels == k) for k, item in enumerate(loaded.anns.values(), 1)] == [True] * 2
