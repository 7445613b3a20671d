"""--preset quick: small networks whose stages fit together, below explicit flags and the toy world's own values."""
import importlib

import pytest

import train_cam
from clipwsss.options import parse, start_weights


def settings(stage, *argv):
    return parse(importlib.import_module(stage).get_parser(), ["--data-root", "x", *argv], stage)


def quick(stage, *argv, dataset="folder"):
    return settings(stage, "--dataset", dataset, "--preset", "quick", *argv)


@pytest.mark.smoke
def test_the_stages_fit_together():
    """CLIP alone unless another --generator and --method are asked for, then a small classifier."""
    cam, prompt, masks = quick("train_cam"), quick("train_prompt"), quick("make_pseudo")
    assert (cam.generator, cam.clip, cam.val_split) == ("clip", "ViT-B/16", "")
    of_help = train_cam.get_parser()  # `train_cam.py --help` shows them without --generator clip too
    assert (of_help.get_default("clip"), of_help.get_default("template")) == (cam.clip, cam.template)
    assert (prompt.method, prompt.maps, prompt.class_prompt, prompt.clip) == ("both", "clip", "word", cam.clip)
    assert (masks.generator, masks.refine, masks.threshold, masks.alpha, masks.unsure) == ("clip", ["crf"], "alpha", 1, 0.95)
    assert masks.set_by["generator"] == "presets.usual_choices"
    cam = quick("train_cam", "--generator", "resnet")
    seg = quick("train_seg")
    assert (cam.backbone, cam.weights, cam.frozen_bn, cam.val_split) == ("resnet18", "auto", False, "")
    assert (seg.network, seg.backbone, seg.weights) == ("deeplabv2", cam.backbone, "auto") and seg.predict_split == "train"
    learned = quick("train_prompt", "--background-prompt", "list+learned", "--prompt-epochs", "2", "--maps", "geometric")
    like = quick("train_prompt", "--method", "semples")  # `both` has all that learning prompts and guidance read
    for name in ("background_template", "w_prompt_image", "w_prompt_class", "prompt_repulsion", "prompt_start", "prompt_lr",
                 "schedule", "weight_decay", "prompt_batch_size", "optimizer", "lr", "crop_size", "resize_long", "epochs"):
        assert getattr(learned, name) is not None and getattr(learned, name) == getattr(like, name), name
    masks = quick("make_pseudo", "--generator", "resnet")
    assert masks.refine == ["color"] and masks.threshold == "otsu"
    for method in ("clims", "pole", "semples"):
        args = quick("train_prompt", "--method", method)
        assert args.epochs == 3 and args.batch_size == 8 and args.match_epochs <= 3 and args.prompt_epochs <= 3
        paper = settings("train_prompt", "--dataset", "folder", "--method", method)
        assert args.w_bg == paper.w_bg, f"{method}: what is rewarded is the paper's"


def test_flags_and_the_toy_world_win_and_paper_is_the_default():
    assert quick("train_cam", "--generator", "resnet", "--backbone", "resnet50").backbone == "resnet50"
    assert quick("train_cam", dataset="toy").backbone == "resnet_tiny"
    assert settings("train_cam", "--dataset", "folder").preset == "paper"
    assert "this project: a first look" in quick("train_cam", "--generator", "resnet").set_by["epochs"]
    assert settings("train_prompt", "--dataset", "folder").method == "pole"


def test_the_segmenter_starts_from_a_generator_where_there_is_one(tmp_path):
    seg = quick("train_seg", "--runs", str(tmp_path))
    assert start_weights(seg) == "imagenet"
    generator = tmp_path / "folder" / "train_prompt" / "generator.pt"
    generator.parent.mkdir(parents=True)
    generator.touch()
    assert start_weights(seg) == generator


def test_imagenets_weights_are_taken_where_they_can_be_had(monkeypatch, capsys):
    monkeypatch.setattr(train_cam, "build_generator", lambda classes, **settings: None)
    assert train_cam.imagenet_or_none([], {"backbone": "resnet18"}) == "imagenet" and capsys.readouterr().out == ""

    def absent(classes, weights, backbone):
        raise FileNotFoundError(f"{backbone}_{weights}.pth: put it at cache/{backbone}_{weights}.pth")
    monkeypatch.setattr(train_cam, "build_generator", absent)
    assert train_cam.imagenet_or_none([], {"backbone": "resnet18"}) == "none"
    told = capsys.readouterr().out
    assert told.startswith("--weights auto: ") and "put it at cache/resnet18_imagenet.pth" in told and told.count("\n") == 1
