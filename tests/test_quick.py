"""--preset quick: small networks whose stages fit together, below explicit flags and the toy world's own rules."""
import importlib

import pytest

import train_cam
from clipwsss.cams.base import GeneratorSettings
from clipwsss.options import parse


def settings(stage, *argv):
    return parse(importlib.import_module(stage).get_parser(), ["--data-root", "x", *argv], stage)


def quick(stage, *argv, dataset="folder"):
    return settings(stage, "--dataset", dataset, "--preset", "quick", *argv)


def test_the_stages_fit_together():
    cam, seg = quick("train_cam"), quick("train_seg")
    assert (cam.backbone, cam.weights, cam.frozen_bn, cam.val_split) == ("resnet18", "auto", False, "")
    assert (seg.network, seg.backbone, seg.weights) == ("deeplabv2", cam.backbone, "generator")
    assert seg.predict_split == "train" and quick("make_pseudo").refine == ["color"]
    assert quick("make_pseudo").threshold == 0.3  # the walk's own


@pytest.mark.parametrize("method", ["clims", "pole", "semples", "both"])
def test_guidance_is_short_whatever_the_method(method):
    args = quick("train_prompt", "--method", method)
    assert args.epochs == 3 and args.batch_size == 8 and args.match_epochs <= 3 and args.prompt_epochs <= 3
    assert args.w_bg == settings("train_prompt", "--method", method).w_bg  # what is rewarded is the paper's


def test_flags_and_the_toy_world_win_and_paper_is_the_default():
    assert quick("train_cam", "--epochs", "2", "--backbone", "resnet50").backbone == "resnet50"
    assert quick("train_cam", dataset="toy").backbone == "resnet_tiny"
    assert settings("train_cam", "--dataset", "folder").preset == "paper"
    assert quick("train_cam").set_by["epochs"].startswith("this project: a first look")


def test_weights_at_hand_are_named(monkeypatch, capsys):
    wanted = GeneratorSettings("resnet18", "auto")
    monkeypatch.setattr(train_cam, "build_generator", lambda classes, settings: None)
    assert train_cam.weights_at_hand([], wanted) == "imagenet" and capsys.readouterr().out == ""

    def absent(classes, settings):
        name = f"{settings.backbone}_{settings.weights}"
        raise FileNotFoundError(f"{name}.pth: put it at cache/{name}.pth")
    monkeypatch.setattr(train_cam, "build_generator", absent)
    assert train_cam.weights_at_hand([], wanted) == "none"
    assert capsys.readouterr().out == ("--weights auto: none, so that maps will be rough: resnet18_imagenet.pth: "
                                       "put it at cache/resnet18_imagenet.pth\n")
