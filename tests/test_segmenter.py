"""The segmenter's file, its starts (a generator's, deeplab-pytorch's) and its exported program."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_deeplab import published_state

from clipwsss.errors import InputError
from clipwsss.files import save_atomic
from clipwsss.pictures import voc_palette
from clipwsss.segment.segmenter import Segmenter, build_segmenter, export_network, load_segmenter

DESIGN = dict(network="deeplabv2", backbone="resnet_tiny", output_stride=4, rates=[1, 2])


def built(weights="none", **changes) -> Segmenter:
    return build_segmenter({**DESIGN, **changes}, ["cat", "dog"], voc_palette(), weights)


def test_file_round_trip_keeps_network_classes_and_palette(tmp_path):
    for name in ("deeplabv2", "deeplabv3plus"):
        segmenter = built(network=name, frozen_bn=False)
        segmenter.save(tmp_path / "segmenter.pt")
        loaded = load_segmenter(tmp_path / "segmenter.pt")
        images = torch.rand(1, 3, 24, 40)
        assert loaded.classes == ["cat", "dog"] and np.array_equal(loaded.palette, voc_palette())
        assert loaded.design == segmenter.design and not loaded.network.backbone.frozen_bn
        assert not loaded.network.training
        assert torch.equal(loaded.network(images), segmenter.network.eval()(images))
    save_atomic({"epoch": 1}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="other.pt: is no checkpoint of these scripts; wanted here: segmenter"):
        load_segmenter(tmp_path / "other.pt")


def test_starts_from_a_generator_and_from_deeplab_pytorch(tmp_path, capsys):
    source = built().network
    state = {f"backbone.{name}": value for name, value in source.backbone.state_dict().items()}
    state["classifier.weight"] = torch.zeros(2, 64, 1, 1)
    save_atomic({"backbone": "resnet_tiny", "state_dict": state}, tmp_path / "generator.pt")
    network = built(tmp_path / "generator.pt").network
    assert torch.equal(network.backbone.conv1.weight, source.backbone.conv1.weight)
    del state["backbone.conv1.weight"]
    save_atomic({"backbone": "resnet_tiny", "state_dict": state}, tmp_path / "generator.pt")
    with pytest.raises(InputError, match="generator.pt: not a state dict of this ResNet"):
        built(tmp_path / "generator.pt")

    torch.save(published_state(3, "fc"), tmp_path / "deeplabv1.pth")
    deep = {"backbone": "resnet50", "output_stride": 8, "rates": None}
    segmenter = built(tmp_path / "deeplabv1.pth", **deep)
    assert segmenter.design["caffe"] and "ASPP starts anew" in capsys.readouterr().out
    first = published_state(3, "fc")["layer1.conv1.conv.weight"].flip(1)
    assert torch.equal(segmenter.network.backbone.conv1.weight, first)
    torch.save(published_state(4, "aspp"), tmp_path / "deeplabv2.pth")
    with pytest.raises(InputError, match="deeplabv2.pth: not a state dict of this DeepLabV2 .*aspp.0"):
        built(tmp_path / "deeplabv2.pth", **deep)


def test_exported_program_gives_the_same_logits_at_other_sizes(tmp_path):
    network = built(network="deeplabv3plus").network.eval()
    export_network(network, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for size in ((2, 3, 96, 128), (1, 3, 75, 60)):
            images = torch.rand(size)
            expected = F.interpolate(network(images), size[2:], mode="bilinear")
            assert torch.allclose(program(images), expected, atol=1e-5)
    with pytest.raises(InputError, match="valid are .pt2 and .onnx"):
        export_network(network, tmp_path / "model.bin")
