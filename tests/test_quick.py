"""--preset quick: small networks whose stages fit together, below explicit flags and the toy world's own values."""
import importlib

import pytest

import train_cam
from clipwsss.options import parse


def settings(stage, *argv):
    return parse(importlib.import_module(stage).get_parser(), ["--data-root", "x", *argv], stage)


def quick(stage, *argv, dataset="folder"):
    return settings(stage, "--dataset", dataset, "--preset", "quick", *argv)


@pytest.mark.smoke
def test_the_stages_fit_together():
    cam = quick("train_cam")
    seg = quick("train_seg")
    assert (cam.backbone, cam.weights, cam.frozen_bn, cam.val_split) == ("resnet18", "auto", False, "")
    assert (seg.network, seg.backbone, seg.weights) == ("deeplabv2", cam.backbone, "generator")
    assert seg.predict_split == "train" and quick("make_pseudo").refine == ["color"]
    assert quick("make_pseudo").threshold == 0.3  # the walk's own
    for method in ("clims", "pole", "semples", "both"):
        args = quick("train_prompt", "--method", method)
        assert args.epochs == 3 and args.batch_size == 8 and args.match_epochs <= 3 and args.prompt_epochs <= 3
        paper = settings("train_prompt", "--dataset", "folder", "--method", method)
        assert args.w_bg == paper.w_bg, f"{method}: what is rewarded is the paper's"


def test_flags_and_the_toy_world_win_and_paper_is_the_default():
    assert quick("train_cam", "--epochs", "2", "--backbone", "resnet50").backbone == "resnet50"
    assert quick("train_cam", dataset="toy").backbone == "resnet_tiny"
    assert settings("train_cam", "--dataset", "folder").preset == "paper"
    assert "this project: a first look" in quick("train_cam").set_by["epochs"]


def test_imagenets_weights_are_taken_where_they_can_be_had(monkeypatch, capsys):
    monkeypatch.setattr(train_cam, "build_generator", lambda classes, **settings: None)
    assert train_cam.imagenet_or_none([], {"backbone": "resnet18"}) == "imagenet" and capsys.readouterr().out == ""

    def absent(classes, weights, backbone):
        raise FileNotFoundError(f"{backbone}_{weights}.pth: put it at cache/{backbone}_{weights}.pth")
    monkeypatch.setattr(train_cam, "build_generator", absent)
    assert train_cam.imagenet_or_none([], {"backbone": "resnet18"}) == "none"
    told = capsys.readouterr().out
    assert told.startswith("--weights auto: ") and "put it at cache/resnet18_imagenet.pth" in told and told.count("\n") == 1
