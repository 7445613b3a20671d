"""Every file that README.md and WEIGHTS.md name: written with all that its release stores, loaded as a command does.

The stand-ins have the released names and shapes. Each tensor repeats one number of its own, so that a file is small
and a tensor that arrives in the wrong place is seen. Sources: hustvl/WeakTr and kuongan/SemPLeS (main*.py),
facebookresearch/deit (main.py), jiwoon-ahn/irn and CVI-SZU/CLIMS (step/train_*.py), kazuto1011/deeplab-pytorch
(convert.py, main.py), torchvision, openai/CLIP (tests/test_clip_checkpoint.py writes its archive), Hugging Face.
"""
import argparse
import importlib
import json
import pathlib
import re

import numpy as np
import pytest
import torch
import torchvision
from test_clip_checkpoint import archive, assert_same, tiny_clip  # noqa: F401
from torch import nn

from clipwsss.cams.generator import build_generator, load_generator
from clipwsss.cams.weaktr import POOLINGS
from clipwsss.datasets import DATASETS
from clipwsss.errors import InputError
from clipwsss.files import save_network
from clipwsss.generator_options import generator_settings
from clipwsss.guidance.regions import load_clip
from clipwsss.networks import vit
from clipwsss.options import parse
from clipwsss.refine.affinity import build_affinity, load_affinity
from clipwsss.segment.segmenter import build_segmenter

VOC = DATASETS["voc12"].classes
IDS = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # COCO's
COCO = [f"category {number}" for number in IDS]


def stand_in(shapes):
    """{name: tensor} of these shapes; each tensor is one number, seen as often as its shape says."""
    state = {}
    for number, (name, shape) in enumerate(shapes.items(), 1):
        whole = name.endswith("num_batches_tracked")
        state[name] = torch.tensor(number if whole else number / 1000).expand(shape)
    return state


def shapes_of(network):
    return {name: value.shape for name, value in network.state_dict().items()}


def resnet_shapes(name="resnet50"):
    """torchvision's file, classifier and counters of batch norm included."""
    with torch.device("meta"):
        return shapes_of(getattr(torchvision.models, name)())


def staged(stages, heads):
    """IRN's naming: the ResNet-50 as resnet50.*, each stage again as stageN.* and as backbone.N.*, then the heads."""
    body = stand_in({name: shape for name, shape in resnet_shapes().items() if not name.startswith("fc.")})
    state = {f"resnet50.{name}": value for name, value in body.items()}
    for number, parts in enumerate(stages):
        for place, part in parts.items():
            for name, value in body.items():
                if name.startswith(f"{part}."):
                    rest = name.removeprefix(f"{part}.")
                    state[f"stage{number + 1}.{place}.{rest}"] = state[f"backbone.{number}.{place}.{rest}"] = value
    return state | stand_in(heads)


def cam_state(n_classes):
    """res50_cam.pth and res50_clims.pth: DataParallel's module.state_dict() of net/resnet50_cam.py or _clims.py."""
    state = staged([{0: "conv1", 1: "bn1", 4: "layer1"}, {0: "layer2"}, {0: "layer3"}, {0: "layer4"}],
                   {"classifier.weight": (n_classes, 2048, 1, 1)})
    return state | {"newly_added.0.weight": state["classifier.weight"]}


def irn_state():
    """res50_irn.pth: AffinityDisplacementLoss of net/resnet50_irn.py with its indices and displacements."""
    heads = {"mean_shift.running_mean": (2,)}
    widths = {"edge": ((64, 32), (256, 32), (512, 32), (1024, 32), (2048, 32)),
              "dp": ((64, 64), (256, 128), (512, 256), (1024, 256), (2048, 256), (768, 256), (448, 256))}
    for kind, pairs in widths.items():
        for level, (width, out) in enumerate(pairs, 1):
            heads |= {f"fc_{kind}{level}.0.weight": (out, width, 1, 1), f"fc_{kind}{level}.1.weight": (out,),
                      f"fc_{kind}{level}.1.bias": (out,)}
    heads |= {"fc_edge6.weight": (1, 160, 1, 1), "fc_edge6.bias": (1,), "fc_dp7.3.weight": (2, 256, 1, 1),
              "fc_dp7.4.running_mean": (2,), **{f"path_indices{number}": (2, 2, 9) for number in range(20)},
              "disp_target": (1, 2, 152, 1)}
    state = staged([{0: "conv1", 1: "bn1"}, {0: "layer1"}, {0: "layer2"}, {0: "layer3"}, {0: "layer4"}], heads)
    for kind in widths:
        for name in [name for name in heads if name.startswith(f"fc_{kind}")]:
            level, rest = name.removeprefix(f"fc_{kind}").split(".", 1)
            state[f"{kind}_layers.{int(level) - 1}.{rest}"] = state[name]
    return state


def deeplab_state(prefix, heads):
    """deeplab-pytorch's names of a ResNet-101 in Caffe's layout."""
    renamed = {}
    for name, shape in resnet_shapes("resnet101").items():
        name = name.replace("downsample.0", "shortcut.conv").replace("downsample.1", "shortcut.bn")
        for number, layer in enumerate(("reduce", "conv3x3", "increase"), 1):
            name = name.replace(f".conv{number}.", f".{layer}.conv.").replace(f".bn{number}.", f".{layer}.bn.")
        if name.startswith("layer"):
            stage, block, rest = name.split(".", 2)
            renamed[f"layer{int(stage[5:]) + 1}.block{int(block) + 1}.{rest}"] = shape
        elif not name.startswith("fc."):
            renamed["layer1.conv1." + name.replace("conv1", "conv").replace("bn1", "bn")] = shape
    return stand_in({prefix + name: shape for name, shape in (renamed | heads).items()})


def deit_shapes(n_tokens=1):
    """DeiT-S without its classifier."""
    shapes = {"cls_token": (1, n_tokens, 384), "pos_embed": (1, n_tokens + 196, 384),
              "patch_embed.proj.weight": (384, 3, 16, 16), "patch_embed.proj.bias": (384,)}
    layers = {"norm1": (384,), "attn.qkv": (1152, 384), "attn.proj": (384, 384), "norm2": (384,),
              "mlp.fc1": (1536, 384), "mlp.fc2": (384, 1536)}
    for block in range(12):
        for layer, shape in layers.items():
            shapes |= {f"blocks.{block}.{layer}.weight": shape, f"blocks.{block}.{layer}.bias": shape[:1]}
    return shapes | {"norm.weight": (384,), "norm.bias": (384,)}


def deit_state():
    return stand_in(deit_shapes() | {"head.weight": (1000, 384), "head.bias": (1000,)})


def deit_run():
    """What DeiT's main.py stores of a training that is not finished."""
    return {"model": deit_state(), "optimizer": optimizer_state(), "lr_scheduler": {"base_values": [5e-4], "metric": None},
            "epoch": 299, "model_ema": deit_state(), "scaler": {"scale": 65536.0, "_growth_tracker": 3},
            "args": argparse.Namespace(model="deit_small_patch16_224", output_dir=pathlib.Path("out"), clip_grad=None)}


def weaktr_run(n_classes, reduction, **fields):
    """WeakTr's and SemPLeS' checkpoints: the model and the other fields of one of main.py's torch.save."""
    fusion = {"attn_head_ffn.0.weight": (72 // reduction, 72), "attn_head_ffn.2.weight": (72, 72 // reduction),
              "attn_feat_ffn.0.weight": (8, 64), "attn_feat_ffn.0.bias": (8,),
              "attn_feat_ffn.1.weight": (1, 8), "attn_feat_ffn.1.bias": (1,)}
    shapes = deit_shapes(n_classes) | {"head.weight": (n_classes, 384, 3, 3), "head.bias": (n_classes,)}
    shapes |= {f"adaptive_attention_fusion.{name}": shape for name, shape in fusion.items()}
    return {"model": stand_in(shapes), **fields}


def optimizer_state():
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=5e-4)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def deeplab_v2():
    """deeplabv2_resnet101_msc-vocaug-20000.pth"""
    return deeplab_state("base.", {f"aspp.c{number}.{name}": shape for number in range(4)
                                   for name, shape in (("weight", (21, 2048, 3, 3)), ("bias", (21,)))})


def deeplab_v1():
    """deeplabv1_resnet101-coco.pth"""
    return deeplab_state("", {"fc.weight": (91, 2048, 1, 1), "fc.bias": (91,)})


def arguments(line):
    """The settings of a command of the README."""
    script, *flags = line.split()
    return parse(importlib.import_module(script).get_parser(), [*flags, "--data-root", "x"], script)


def init(path, line, classes=VOC, ids=()):
    args = arguments(line)
    return load_generator(path, classes, args.generator, ids, **generator_settings(args))


def weights(path, line):
    return build_generator(VOC, weights=path, **generator_settings(arguments(line)))


def segmenter(path):
    args = arguments("train_seg --dataset voc12")
    design = {"network": args.network, "backbone": args.backbone, "output_stride": args.output_stride}
    return build_segmenter(design, 21, path)[0]


def same(name):
    return name


def of_torchvision(name):
    return name.removeprefix("backbone.") if name.startswith("backbone.") else None


def of_irn(name):
    return name.replace("backbone.", "resnet50.", 1)


def of_deit(name):
    return name if name.split(".")[0] in vit.TRANSFORMER_PARTS else None


def of_deeplab(name):
    """The released name of one of ours, with the prefix base."""
    if name.startswith("aspp."):
        return "base.aspp.c" + name.removeprefix("aspp.")
    _, stage, *rest = name.split(".")
    if not stage.startswith("layer"):
        return f"base.layer1.conv1.{stage.removesuffix('1')}.{rest[0]}"
    block, *layer, field = rest
    layer = {"downsample.0": "shortcut.conv", "downsample.1": "shortcut.bn"}.get(".".join(layer), layer[0])
    for number, theirs in enumerate(("reduce", "conv3x3", "increase"), 1):
        layer = {f"conv{number}": f"{theirs}.conv", f"bn{number}": f"{theirs}.bn"}.get(layer, layer)
    return f"base.layer{int(stage[5:]) + 1}.block{int(block) + 1}.{layer}.{field}"


def of_v1(name):
    return None if name.startswith("aspp.") else of_deeplab(name).removeprefix("base.")


POLE = "train_prompt --dataset voc12 --method pole"
SEMPLES = "train_prompt --dataset voc12 --generator weaktr --method semples"
CLIMS_COCO = "train_prompt --dataset coco14 --method clims"
SEMPLES_COCO = "train_prompt --dataset coco14 --generator weaktr --method semples"
WEAKTR = "train_cam --dataset voc12 --generator weaktr"
BEST = {"epoch": 41, "miou": np.nanmean(np.array([0.6, 0.7])) * 100}
# What is stored, how it is loaded, and our name of a tensor -> the name in the file (None: not of the file).
CASES = {
    "irn res50_cam": (lambda: cam_state(20), lambda path: init(path, POLE), of_irn),
    "clims res50_clims": (lambda: cam_state(20), lambda path: init(path, "train_cam --dataset voc12"), of_irn),
    "clims coco res50_cam": (lambda: cam_state(80), lambda path: init(path, CLIMS_COCO, COCO, IDS), of_irn),
    "irn res50_irn": (irn_state, lambda path: load_affinity(path, "irn"), of_irn),
    "torchvision resnet50": (lambda: stand_in(resnet_shapes()), lambda path: weights(path, "train_cam --dataset voc12"),
                             of_torchvision),
    "torchvision resnet50 for irn": (lambda: stand_in(resnet_shapes()),
                                     lambda path: build_affinity("irn", "resnet50", path)[0], of_torchvision),
    "torchvision resnet101": (lambda: stand_in(resnet_shapes("resnet101")), segmenter, of_torchvision),
    "deeplabv1_resnet101-coco": (deeplab_v1, segmenter, of_v1),
    "deeplabv2_resnet101_msc-vocaug": (deeplab_v2, segmenter, of_deeplab),
    "deit_small": (lambda: {"model": deit_state()}, lambda path: weights(path, WEAKTR), of_deit),
    "deit, a run of its main.py": (deit_run, lambda path: weights(path, WEAKTR), of_deit),
    "weaktr checkpoint_best_mIoU": (lambda: weaktr_run(20, 8, **BEST), lambda path: init(path, SEMPLES), same),
    "weaktr checkpoint7": (lambda: weaktr_run(20, 8, optimizer=optimizer_state(), train_stats={"loss": 0.1}, epoch=7),
                           lambda path: init(path, WEAKTR), same),
    "semples checkpoint": (lambda: weaktr_run(20, 8, epoch=59), lambda path: init(path, SEMPLES), same),
    "weaktr on coco since 2023-10": (lambda: weaktr_run(90, 8, **BEST), lambda path: init(path, SEMPLES_COCO, COCO, IDS),
                                     same),
    "semples on coco": (lambda: weaktr_run(90, 4, **BEST), lambda path: init(path, SEMPLES_COCO, COCO, IDS), same),
}
# What is not read, by the first part of its name: second names, classifiers of other classes, IRN's instances.
NOT_READ = {same: "", of_torchvision: "fc", of_v1: "fc", of_deeplab: "", of_deit: "head",
            of_irn: r"stage\d|backbone|newly_added|fc_dp\d|(edge|dp)_layers|mean_shift|path_indices\d+|disp_target"}


@pytest.mark.parametrize("case", CASES)
def test_each_tensor_of_a_released_file_arrives_in_its_place(case, tmp_path):
    make, load, their_name = CASES[case]
    stored = make()
    zipped = "model" in stored  # torch's older format, before 1.6, is that of the other releases
    torch.save(stored, tmp_path / "released.pth", _use_new_zipfile_serialization=zipped)
    network = load(tmp_path / "released.pth")
    state = stored.get("model", stored)
    arrived = set()
    for name, value in network.state_dict().items():
        theirs = their_name(name)
        if theirs is not None:
            arrived.add(theirs)
            assert (value == state[theirs].flatten()[0]).all(), (name, theirs)
    left = {name.split(".")[0] for name in state.keys() - arrived if not name.endswith("num_batches_tracked")}
    assert len(arrived) >= 150 and all(re.fullmatch(NOT_READ[their_name], part) for part in left), left


def test_weaktr_s_pooling_is_that_of_the_file(tmp_path, capsys):
    """The releases' files do not state it. WeakTr replaced its COCO file of 4 and avg by one of 8 and max."""
    torch.save(weaktr_run(90, 8, **BEST), tmp_path / "new.pth")
    torch.save(weaktr_run(90, 4, **BEST), tmp_path / "old.pth")
    assert init(tmp_path / "old.pth", SEMPLES_COCO, COCO, IDS).config["pooling"] == "avg"
    assert capsys.readouterr().out == ""
    new = init(tmp_path / "new.pth", SEMPLES_COCO, COCO, IDS)
    assert new.config["pooling"] == "max" and new.adaptive_attention_fusion.pool is POOLINGS["max"]
    assert "a reduction of 8, not 4: its fusion pools by max" in capsys.readouterr().out
    asked = init(tmp_path / "new.pth", f"{SEMPLES_COCO} --reduction 8 --pooling avg", COCO, IDS)
    save_network(asked, "generator", asked.config, tmp_path / "ours.pt")
    assert init(tmp_path / "ours.pt", SEMPLES_COCO, COCO, IDS).config["pooling"] == "avg"  # a file of ours states it


def test_old_batch_norms_without_counters_load(tmp_path):
    """torchvision's and IRN's files of 2017 to 2019 may come from a torch that did not count batches."""
    state = {name: value for name, value in cam_state(20).items() if not name.endswith("num_batches_tracked")}
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "res50_cam.pth")
    network = init(tmp_path / "res50_cam.pth", POLE)
    assert (network.classifier.weight == state["classifier.weight"]).all() and network.backbone.bn1.num_batches_tracked == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openais_archive(archive):  # noqa: F811
    assert_same(load_clip(str(archive), torch.device("cpu")), tiny_clip())


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_the_swin_of_the_hub(file, tmp_path):
    """The published folder holds an image classifier and a config.json of transformers 4.15."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1],
                                     window_size=4, num_labels=7)
    published = transformers.SwinForImageClassification(config)
    published.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings |= {"path_norm": True, "torch_dtype": "float32", "transformers_version": "4.15.0.dev0"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"feature_extractor_type": "ViTFeatureExtractor"}))
    if file == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(published.state_dict(), tmp_path / file)
    network, _ = build_segmenter({"network": "mask2former"}, 21, str(tmp_path))
    inner = network.model.model.pixel_level_module.encoder.state_dict()
    for name, value in published.swin.state_dict().items():
        if not name.startswith("layernorm."):  # of the classifier
            (own,) = [own for own in inner if own.endswith(name)]
            assert torch.equal(inner[own], value), name


def test_a_swin_with_code_or_damage_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4)
    config.save_pretrained(tmp_path)
    for name, content in (("pytorch_model.bin", {"weights": print}), ("model.safetensors", "torn")):
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match="--weights .*: ") as caught:
            build_segmenter({"network": "mask2former"}, 21, str(tmp_path))
        assert "\n" not in str(caught.value)
