"""The epoch whose CAMs agree best with true masks: how CAMs are scored, what is kept, in both trainings."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_train_scripts import FAST, guide, runs  # noqa: F401 (a fixture)
from torch import nn

import train_cam
from clipwsss.cams.generator import load_generator
from clipwsss.datasets import build_dataset
from clipwsss.datasets.base import whole_image
from clipwsss.errors import InputError
from clipwsss.files import load_weights
from clipwsss.generator_options import listed_images, open_validation
from clipwsss.options import parse
from clipwsss.report import best_epoch
from clipwsss.report.best_epoch import BestEpoch, cam_miou
from clipwsss.report.metrics import confusion, scores


def test_the_best_epoch_comes_back(capsys, monkeypatch):
    network = nn.Linear(1, 1, bias=False)
    for mious, expected in (([30.0, 50.0, 40.0], 2), ([9.0, 8.0], 1), ([7.0, 7.0], 1)):
        best = BestEpoch(network, None)
        figures = iter(mious)
        monkeypatch.setattr(best_epoch, "cam_miou", lambda *_: next(figures))
        for epoch in range(len(mious)):
            nn.init.constant_(network.weight, epoch + 1)
            best.consider(epoch)
        resumed = BestEpoch(network, None)
        resumed.load_state_dict(best.state_dict())
        for keeper in (best, resumed):
            nn.init.constant_(network.weight, -1)
            keeper.restore()
            assert network.weight.item() == expected, mious
            assert f"kept epoch {expected}: CAM mIoU {max(mious):.2f}" in capsys.readouterr().out
    BestEpoch(network, None).restore()  # without an epoch, as with --epochs 0, the weights stay
    assert network.weight.item() == 1


def test_epochs_are_chosen_by_one_scale_with_mirror_images_at_fine_thresholds(runs):  # noqa: F811
    """WeakTr's generate_attention_maps_ms with --scales 1.0 and its evaluation, image by image."""
    data = build_dataset("toy", runs / "toy" / "data", "val").with_transform(whole_image)
    generator = load_generator(runs / "toy" / "train_cam" / "generator.pt", data.classes, "resnet").eval()
    tables = np.zeros((99, 7, 7), np.int64)
    for index in range(len(data)):
        image, keys = data[index].image[None], data.entries[index].tags
        with torch.inference_mode():
            maps = generator(image).relu() + generator(image.flip(-1)).relu().flip(-1)
        maps = F.interpolate(maps, image.shape[-2:], mode="bilinear")[0, list(keys)]
        maps = maps / (maps.amax((1, 2), keepdim=True) + 1e-5)
        truth = data.load_mask(index)
        for step in range(1, 100):
            scored = np.concatenate([np.full((1, *truth.shape), np.float32(step / 100)), maps.numpy()])
            labels = np.append(0, np.array(keys) + 1)[scored.argmax(0)].astype(np.uint8)
            tables[step - 1] += confusion(labels, truth, 7)
    assert cam_miou(generator, data, batch_size=3) == pytest.approx(scores(tables)["miou"].max(), abs=1e-6)
    data.has_masks = False
    with pytest.raises(ValueError, match="no masks"):
        cam_miou(generator, data)


def test_some_images_choose_the_epoch(runs, tmp_path):  # noqa: F811
    """As on COCO in the releases, whose file calls images by their numbers alone."""
    names = ["COCO_train2014_000000000009", "COCO_train2014_000000000030", "COCO_train2014_000000000072"]
    path = tmp_path / "train_1250_id.txt"
    path.write_text("000000000072\n\n000000000009\nCOCO_train2014_000000000072\n")
    assert listed_images(path, names) == [2, 0]
    for content, message in (("000000000009\n9\n", "train_1250_id.txt:2: no image of this split is called 9"),
                             ("\n", "train_1250_id.txt: it lists no image")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            listed_images(path, names)
    data = build_dataset("toy", runs / "toy" / "data", "val").with_transform(whole_image)
    path.write_text(f"{data.names[3]}\n{data.names[1]}\n")
    args = parse(train_cam.get_parser(), ["--dataset", "toy", "--runs", str(runs), "--keep-best", "val",
                                          "--best-images", str(path)], "train_cam")
    some = open_validation(args).with_transform(whole_image)
    assert some.names == [data.names[3], data.names[1]] and len(data) > len(some) == 2
    assert torch.equal(some.labels, data.labels[[3, 1]]) and some.masked == [True, True]
    for index, whole in ((0, 3), (1, 1)):
        assert torch.equal(some[index].image, data[whole].image)
        assert np.array_equal(some.load_mask(index), data.load_mask(whole))
    with pytest.raises(InputError, match="--best-images: .* give both"):
        train_cam.main([*FAST, "--runs", str(runs), "--out", str(tmp_path / "run"), "--best-images", str(path)])


def epochs_that_score(monkeypatch, mious):
    """The list to which the classifier's weights of each epoch come; its CAMs then have these mIoU in turn."""
    figures = iter(mious)
    weights = []

    def of_this_epoch(generator, *_):
        weights.append(generator.classifier.weight.detach().clone())
        return next(figures)

    monkeypatch.setattr(best_epoch, "cam_miou", of_this_epoch)
    return weights


def test_the_classifier_keeps_its_best_epoch_too(runs, tmp_path, capsys, monkeypatch):  # noqa: F811
    weights = epochs_that_score(monkeypatch, [40.0, 60.0, 50.0])
    argv = [*FAST, "--runs", str(runs), "--out", str(tmp_path / "run"), "--epochs", "3", "--batch-size", "6"]
    assert train_cam.main([*argv, "--keep-best", "train"]) == 0
    assert "kept epoch 2: CAM mIoU 60.00 at one scale" in capsys.readouterr().out
    stored = load_weights(tmp_path / "run/generator.pt")["state_dict"]["classifier.weight"]
    assert torch.equal(stored, weights[1]) and not torch.equal(stored, weights[2])
    with pytest.raises(InputError, match="--split nowhere"):
        train_cam.main([*argv, "--keep-best", "nowhere", "--overwrite"])


def test_matching_hands_its_best_epoch_to_the_prompts(runs, tmp_path, capsys, monkeypatch):  # noqa: F811
    """As in SemPLeS' release, stage (b) learns on the best checkpoint of stage (a)."""
    weights = epochs_that_score(monkeypatch, [70.0, 60.0, 50.0])
    seen = []
    load_state_dict = nn.Module.load_state_dict

    def loaded(self, state, *args, **kwargs):
        seen.append(state)
        return load_state_dict(self, state, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "load_state_dict", loaded)
    guide(runs, tmp_path / "run", "--method", "semples", "--match-epochs", "2", "--prompt-epochs", "1",
          "--keep-best", "val")
    printed = capsys.readouterr().out
    assert printed.index("kept epoch 1: CAM mIoU 70.00") < printed.index("background_prompts 1/1")
    assert printed.index("background_prompts 1/1") < printed.index("kept epoch 1: CAM mIoU 50.00")
    given = [state["classifier.weight"] for state in seen if "classifier.weight" in state]
    assert any(torch.equal(weight, weights[0]) for weight in given)
    assert json.loads((tmp_path / "run/args.json").read_text())["keep_best"] == "val"
