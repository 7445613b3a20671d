"""The segmenter's file, its starts (a generator's, deeplab-pytorch's) and its exported program."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_deeplab import published_state

from clipwsss.errors import InputError
from clipwsss.files import save_atomic
from clipwsss.pictures import voc_palette
from clipwsss.segment.segmenter import build_segmenter, export_network, load_segmenter, save_segmenter

DESIGN = dict(network="deeplabv2", backbone="resnet_tiny", output_stride=4, rates=[1, 2])


def built(weights="none", **changes) -> tuple[torch.nn.Module, dict]:
    """A small network of three labels and its complete design."""
    return build_segmenter({**DESIGN, **changes}, 3, weights)


def test_file_round_trip_keeps_network_classes_and_palette(tmp_path):
    for name in ("deeplabv2", "deeplabv3plus"):
        network, design = built(network=name, frozen_bn=False)
        save_segmenter(network, design, ("cat", "dog"), voc_palette(), tmp_path / "segmenter.pt")
        loaded, loaded_design, classes, palette = load_segmenter(tmp_path / "segmenter.pt")
        images = torch.rand(1, 3, 24, 40)
        assert classes == ["cat", "dog"] and np.array_equal(palette, voc_palette())
        assert loaded_design == design and not loaded.backbone.kept_in_eval and not loaded.training
        assert torch.equal(loaded(images), network.eval()(images))
    save_atomic({"epoch": 1}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="other.pt: .*segmenter"):
        load_segmenter(tmp_path / "other.pt")


def test_starts_from_a_generator_and_from_deeplab_pytorch(tmp_path, capsys):
    source, _ = built()
    state = {f"backbone.{name}": value for name, value in source.backbone.state_dict().items()}
    state["classifier.weight"] = torch.zeros(2, 64, 1, 1)
    save_atomic({"backbone": "resnet_tiny", "state_dict": state}, tmp_path / "generator.pt")
    network, _ = built(tmp_path / "generator.pt")
    assert torch.equal(network.backbone.conv1.weight, source.backbone.conv1.weight)
    del state["backbone.conv1.weight"]
    save_atomic({"backbone": "resnet_tiny", "state_dict": state}, tmp_path / "generator.pt")
    with pytest.raises(InputError, match="generator.pt: not .*conv1.weight"):
        built(tmp_path / "generator.pt")

    torch.save(published_state(3, "fc"), tmp_path / "deeplabv1.pth")
    deep = {"backbone": "resnet50", "output_stride": 8, "rates": None}
    network, design = built(tmp_path / "deeplabv1.pth", **deep)
    assert design["caffe"] and "the ASPP" in capsys.readouterr().out
    first = published_state(3, "fc")["layer1.conv1.conv.weight"].flip(1)
    assert torch.equal(network.backbone.conv1.weight, first)
    torch.save(published_state(4, "aspp"), tmp_path / "deeplabv2.pth")
    with pytest.raises(InputError, match="deeplabv2.pth: not .* DeepLabV2 .*aspp.0"):
        built(tmp_path / "deeplabv2.pth", **deep)


def test_exported_program_gives_the_same_logits_at_other_sizes(tmp_path):
    network, _ = built(network="deeplabv3plus")
    network.eval()
    export_network(network, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for size in ((2, 3, 96, 128), (1, 3, 75, 60)):
            images = torch.rand(size)
            expected = F.interpolate(network(images), size[2:], mode="bilinear")
            assert torch.allclose(program(images), expected, atol=1e-5)
    with pytest.raises(InputError, match="model.bin: the name must end in .pt2 or .onnx"):
        export_network(network, tmp_path / "model.bin")
