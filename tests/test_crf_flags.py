"""The CRF's kernels from the command line to the CRF, and WeakTr's masks by their preset."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import make_pseudo
import train_seg
from clipwsss import ablate
from clipwsss.cams.cam_files import read_cam, resize_cam, write_cam
from clipwsss.errors import InputError
from clipwsss.options import parse
from clipwsss.refine.crf import dense_crf, unary_from_labels
from clipwsss.refine.stages import crf_labels


@pytest.fixture
def world(tmp_path):
    """Two images of 45 x 66 with a square of the class "green"; its map is smaller and has a speck."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.txt").write_text("red\ngreen\n")
    (tmp_path / "labels.csv").write_text("image,labels\nim0,green\nim1,green\n")
    rng = np.random.default_rng(0)
    for number in (0, 1):
        truth = np.zeros((45, 66), np.uint8)
        truth[8 + number:32, 12:44] = 2
        image = rng.integers(60, 90, (45, 66, 3)).astype(np.uint8)
        image[truth > 0, 1] += 90
        Image.fromarray(image).save(tmp_path / f"images/im{number}.png")
        Image.fromarray(truth).save(tmp_path / f"masks/im{number}.png")
        cam = 0.4 * rng.random((1, 12, 17), np.float32)
        cam[0, 3:7, 4:10] = 1
        cam[0, 1, 15] = 0.44  # above 0.43
        write_cam(tmp_path / "cams", f"im{number}", np.array([1]), cam)
    return tmp_path


def test_masks_of_weaktr_are_its_threshold_and_its_crf(world):
    """WeakTr's evaluation.py --out-crf, step by step: the scores, the labels, the CRF that starts from them.

    The images are a folder's, so that the threshold of VOC is given.
    """
    out = world / "out"
    assert make_pseudo.main(["--dataset", "folder", "--data-root", str(world), "--cams", str(world / "cams"),
                             "--generator", "weaktr", "--threshold", "0.43", "--out", str(out), "--workers", "0"]) == 0
    differs_from_irn = False
    for name in ("im0", "im1"):
        pixels = np.array(Image.open(world / f"images/{name}.png"))
        maps = resize_cam(read_cam(world / "cams", name), (45, 66))
        labels = np.concatenate([np.full((1, 45, 66), np.float32(0.43)), maps]).argmax(0)
        energies = unary_from_labels(labels, 2, 0.7)
        expected = dense_crf(pixels, energies, 10, (4, 3), (83, 5, 3)).argmax(0) * 2
        written = np.array(Image.open(out / f"masks/{name}.png"))
        assert np.array_equal(written, expected) and not np.array_equal(written, labels * 2), name
        differs_from_irn |= not np.array_equal(expected, dense_crf(pixels, energies, 10).argmax(0) * 2)
        again = crf_labels(pixels, torch.from_numpy(labels), 2, (4, 3), (83, 5, 3)).numpy() * 2
        assert np.array_equal(again, expected), name
    assert differs_from_irn
    kept = json.loads((out / "args.json").read_text())
    assert kept["refine"] == ["crf"] and kept["threshold"] == 0.43


def test_rows_of_tables_on_weaktr_have_weaktrs_masks():
    tables = json.loads(ablate.ABLATION_TABLES.read_text())

    def mask_settings(table, name, dataset):
        row = ablate.read_rows(tables[table], dataset)[name]
        masks, *_ = ablate.later_stages(row, "make_pseudo", dataset)
        flags = ["--dataset", dataset, "--data-root", ".", *masks.flags]
        return vars(parse(make_pseudo.get_parser(), flags, "make_pseudo"))

    for dataset, threshold in (("voc12", 0.43), ("coco14", 0.42)):
        for table, name in (("semples1", "CAM"), ("semples1", "SemPLeS"), ("semples4", "SemPLeS on WeakTr")):
            settings = mask_settings(table, name, dataset)
            assert (settings["refine"], settings["threshold"]) == (["crf"], threshold), (table, name)
            assert (settings["crf_gaussian"], settings["crf_bilateral"]) == ([4.0, 3.0], [83.0, 5.0, 3.0])
        assert mask_settings("semples4", "CLIMS", dataset)["refine"] == ["irn"]


def test_kernels_of_the_command_line_reach_the_segmenters_crf(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train_seg, "size_loader", lambda *_: None)
    monkeypatch.setattr(train_seg, "reduced_images", lambda *_: None)
    monkeypatch.setattr(train_seg, "predict_images", lambda *_: [])
    monkeypatch.setattr(train_seg, "write_label_maps", lambda *given: seen.append(given[3]))
    dataset = SimpleNamespace(names=[], sizes=[])
    for flags in ([], ["--no-crf"], ["--crf-gaussian", "3", "3", "--crf-bilateral", "83", "5", "3"]):
        args = parse(train_seg.get_parser(), ["--dataset", "voc12", "--data-root", ".", *flags], "train_seg")
        train_seg.predict(args, None, dataset, tmp_path, None)
    assert seen == [([1.0, 3.0], [67.0, 3.0, 4.0]), None, ([3.0, 3.0], [83.0, 5.0, 3.0])]


def test_kernels_that_are_none_are_refused():
    for script in (make_pseudo, train_seg):
        for flags in (["--crf-gaussian", "0", "3"], ["--crf-bilateral", "83", "-5", "3"]):
            with pytest.raises(InputError, match=f"{flags[0]}: .* is not a number of at least 0.001"):
                parse(script.get_parser(), ["--data-root", ".", *flags], "make_pseudo")
