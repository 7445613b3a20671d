"""The segmenter's file, its starts (a generator's, deeplab-pytorch's) and its exported program."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_deeplab import published_state

from PIL import Image
from clipwsss.errors import InputError
from clipwsss.files import save_atomic
from clipwsss.pictures import voc_palette
from clipwsss.segment import Segmenter
from clipwsss.segment.predict import class_probabilities
from clipwsss.segment.segmenter import build_segmenter, export_network, save_segmenter
from clipwsss.training import use_bf16

DESIGN = dict(network="deeplabv2", backbone="resnet_tiny", output_stride=4, rates=[1, 2])


def built(weights="none", **changes) -> tuple[torch.nn.Module, dict]:
    """A small network of three labels and its complete design."""
    return build_segmenter({**DESIGN, **changes}, 3, weights)


def test_file_round_trip_keeps_network_classes_and_palette(tmp_path):
    for name in ("deeplabv2", "deeplabv3plus"):
        network, design = built(network=name, frozen_bn=False)
        save_segmenter(network, design, ("cat", "dog"), voc_palette(), tmp_path / "segmenter.pt")
        segmenter = Segmenter(tmp_path / "segmenter.pt", "cpu")
        loaded = segmenter.network
        images = torch.rand(1, 3, 24, 40)
        assert segmenter.classes == ["cat", "dog"] and np.array_equal(segmenter.palette, voc_palette())
        assert segmenter.design == design and not loaded.backbone.kept_in_eval and not loaded.training
        assert torch.allclose(loaded(images), network.eval()(images), atol=1e-5)
        assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())
    save_atomic({"epoch": 1}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="other.pt: .*segmenter"):
        Segmenter(tmp_path / "other.pt")


def test_starts_from_a_generator_and_from_deeplab_pytorch(tmp_path, capsys):
    source, _ = built()
    state = {f"backbone.{name}": value for name, value in source.backbone.state_dict().items()}
    state["classifier.weight"] = torch.zeros(2, 64, 1, 1)
    save_atomic({"backbone": "resnet_tiny", "state_dict": state}, tmp_path / "generator.pt")
    network, _ = built(tmp_path / "generator.pt")
    assert torch.equal(network.backbone.conv1.weight, source.backbone.conv1.weight)
    assert "generator.pt: the backbone is loaded; all other layers start from random" in capsys.readouterr().out
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


@pytest.mark.parametrize("name, layer", [("deeplabv2", "aspp.1"), ("deeplabv3plus", "decoder.2")])
def test_goes_on_from_a_segmenter_whose_classes_are_found_by_name(tmp_path, capsys, name, layer):
    before, design = built(network=name)
    save_segmenter(before, design, ("cat", "dog"), voc_palette(), tmp_path / "segmenter.pt")
    start = {**DESIGN, "network": name}
    same, _ = build_segmenter(start, 3, tmp_path / "segmenter.pt", ["cat", "dog"])
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in same.state_dict().items())
    assert capsys.readouterr().out == f"--weights {tmp_path}/segmenter.pt: all layers are loaded\n"

    more, _ = build_segmenter(start, 4, tmp_path / "segmenter.pt", ["dog", "cow", "sheep"])
    said = capsys.readouterr().out
    assert "start from random weights: cow, sheep; classes of the file that are not used: cat\n" in said
    old, new = (network.state_dict()[f"{layer}.weight"] for network in (before, more))
    assert torch.equal(new[[0, 1]], old[[0, 2]]) and new[2:].std() > 0 and not torch.equal(new[2], old[1])
    assert torch.equal(more.backbone.conv1.weight, before.backbone.conv1.weight)

    wider = dict(rates=[1, 2, 3]) if name == "deeplabv2" else dict(backbone="resnet18", output_stride=8)
    with pytest.raises(InputError, match="segmenter.pt: not the weights of a DeepLab"):
        build_segmenter({**start, **wider}, 3, tmp_path / "segmenter.pt", ["cat", "dog"])
    other, _ = build_segmenter({**DESIGN, "network": "deeplabv2" if layer == "decoder.2" else "deeplabv3plus"},
                               3, tmp_path / "segmenter.pt", ["cat", "dog"])
    assert "the backbone is loaded; all other" in capsys.readouterr().out
    assert torch.equal(other.backbone.conv1.weight, before.backbone.conv1.weight)


def test_labels_a_file_a_pil_image_and_an_array_alike(tmp_path):
    network, design = built()
    test = {"test_scales": [1.0, 0.5], "test_fusion": "max", "test_flip": True, "crf": False, "max_side": 32,
            "crf_gaussian": [3.0, 3.0], "crf_bilateral": [83.0, 5.0, 3.0], "short_side": 0}
    save_segmenter(network, design, ("cat", "dog"), voc_palette(), tmp_path / "segmenter.pt", test)
    pixels = np.random.default_rng(0).integers(0, 255, (50, 80, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the file's pixels are to be turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    segmenter = Segmenter(tmp_path / "segmenter.pt", "cpu")
    assert segmenter.test == test
    result = segmenter(tmp_path / "photo.png")
    assert result.names == ["background", "cat", "dog"] and np.array_equal(result.palette, voc_palette()[:3])
    assert result.labels.shape == (50, 80) and result.labels.dtype == np.uint8
    assert result.probabilities.shape == (3, 50, 80) and np.allclose(result.probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(result.labels, result.probabilities.argmax(0))
    small = torch.from_numpy(np.array(Image.fromarray(pixels).resize((32, 20), Image.Resampling.BILINEAR)))
    with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16("auto", torch.device("cpu"))):
        expected = class_probabilities(segmenter.network, small.permute(2, 0, 1)[None] / 255, [1.0, 0.5], True, "max")
    expected = F.interpolate(expected, (50, 80), mode="bilinear")[0]
    assert np.allclose(result.probabilities, expected.detach(), atol=1e-5)
    for photo in (str(tmp_path / "photo.png"), Image.fromarray(pixels).convert("RGBA"), pixels):
        assert np.array_equal(segmenter(photo).probabilities, result.probabilities)
    assert segmenter(tmp_path / "turned.png").labels.shape == (80, 50)
    assert segmenter(pixels[..., 0]).labels.shape == (50, 80)

    segmenter.test["max_side"] = None
    segmenter.test["crf"] = True
    refined = segmenter(pixels)
    assert np.array_equal(refined.labels, refined.probabilities.argmax(0))
    assert not np.allclose(refined.probabilities, result.probabilities, atol=1e-3)
    with pytest.raises(InputError, match="nowhere.jpg: no such image"):
        segmenter("nowhere.jpg")
    for wrong in (pixels / 255, pixels[None], pixels[..., :2], Image.new("I;16", (8, 8))):
        with pytest.raises(ValueError, match="uint8|8 bits"):
            segmenter(wrong)


def test_a_file_without_test_settings_says_how_it_is_tested(tmp_path, capsys):
    network, design = built()
    config = {"design": design, "classes": ["cat", "dog"], "palette": torch.from_numpy(voc_palette().copy())}
    save_atomic({"kind": "segmenter", "config": config, "state_dict": network.state_dict()}, tmp_path / "old.pt")
    segmenter = Segmenter(tmp_path / "old.pt", "cpu")
    assert "old.pt: from an earlier version" in capsys.readouterr().out
    assert segmenter.test["test_scales"] == [1.0] and not segmenter.test["crf"] and segmenter.test["max_side"] is None
