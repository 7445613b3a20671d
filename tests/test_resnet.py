"""ResNets: parity with torchvision, output strides, weights, frozen batch norm, life outside the package."""
import shutil
import subprocess
import sys
import urllib.error

import pytest
import torch
import torchvision
from torchvision.transforms.v2.functional import normalize

from clipwsss.networks import resnet

DEEP = ("resnet18", "resnet50", "resnet101")


def randomise(model: torch.nn.Module) -> None:
    """Give batch norm non-trivial statistics, so that a wrongly placed one shows."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)


@pytest.mark.parametrize("name", DEEP)
def test_equals_torchvision_at_stride_32(name, tmp_path):
    theirs = torchvision.models.get_model(name, weights=None).eval()
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = resnet.build(name, 32, tmp_path / "weights.pth").eval()
    images = torch.rand(2, 3, 65, 97)
    features = normalize(images, resnet.IMAGENET_MEAN, resnet.IMAGENET_STD)
    with torch.no_grad():
        for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            features = getattr(theirs, part)(features)
        result = ours(images)
    assert result.shape == (2, ours.channels[-1], 3, 4)
    assert (result - features).abs().max() <= 1e-5 * features.abs().max()


def test_dilation_equals_torchvisions():
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    randomise(theirs)
    ours = resnet.build("resnet50", 8, dilate=True).eval()
    resnet.load_state(ours, theirs.state_dict(), "theirs")
    images = torch.rand(1, 3, 64, 48)
    features = normalize(images, resnet.IMAGENET_MEAN, resnet.IMAGENET_STD)
    with torch.no_grad():
        for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            features = getattr(theirs, part)(features)
        assert (ours(images) - features).abs().max() <= 1e-5 * features.abs().max()


@pytest.mark.parametrize("name, caffe", [("resnet18", False), ("resnet50", False), ("resnet50", True)])
def test_dilated_network_computes_the_same_at_more_places(name, caffe):
    coarse = resnet.build(name, 32, caffe=caffe).eval()
    randomise(coarse)
    images = torch.rand(1, 3, 75, 120)
    with torch.no_grad():
        expected = coarse(images)
        for output_stride in (16, 8):
            fine = resnet.build(name, output_stride, dilate=True, caffe=caffe).eval()
            fine.load_state_dict(coarse.state_dict())
            step = 32 // output_stride
            result = fine(images)[..., ::step, ::step]
            assert result.shape == expected.shape
            assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_stages_strides_and_channels():
    images = torch.rand(1, 3, 64, 96)
    cases = (("resnet50", 16, (4, 4, 8, 16, 16)), ("resnet18", 8, (4, 4, 8, 8, 8)),
             ("resnet_tiny", 4, (2, 2, 4, 4, 4)))
    for name, output_stride, strides in cases:
        model = resnet.build(name, output_stride).eval()
        maps = model.stages(images)
        assert [tuple(item.shape[1:]) for item in maps] == [
            (width, 64 // stride, 96 // stride) for width, stride in zip(model.channels, strides)]
        assert torch.equal(maps[-1], model(images))
    irn = resnet.build("resnet50", 16)  # IRN's generator: stride 1 in layer4 and no dilation at all
    assert all(module.dilation == (1, 1) for module in irn.modules() if isinstance(module, torch.nn.Conv2d))
    dilated = {name for name, module in resnet.build("resnet50", 16, dilate=True).named_modules()
               if isinstance(module, torch.nn.Conv2d) and module.dilation == (2, 2)}
    assert dilated == {"layer4.1.conv2", "layer4.2.conv2"}


def test_frozen_batch_norm_keeps_statistics_and_learns_its_scale():
    model = resnet.build("resnet_tiny", 4, frozen_bn=True).train()
    before = model.layer2[0].bn1.running_mean.clone()
    model(torch.rand(2, 3, 32, 40)).sum().backward()
    assert model.training and not model.bn1.training
    assert torch.equal(model.layer2[0].bn1.running_mean, before)
    assert model.layer2[0].bn1.weight.grad is not None
    assert resnet.build("resnet_tiny", 4).train().bn1.training


def test_normalisation_is_inside_and_not_in_the_state_dict():
    model = resnet.build("resnet_tiny", 4)
    assert not {"mean", "std"} & model.state_dict().keys()
    grey = torch.tensor(resnet.IMAGENET_MEAN).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    model.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    seen = []
    model(grey)
    assert seen[0].abs().max() < 1e-6


def test_bad_weights_are_refused_with_one_clear_line(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    cases = {"other.pth": {key: value for key, value in state.items() if key != "layer1.0.conv1.weight"},
             "shape.pth": {**state, "conv1.weight": torch.zeros(64, 3, 3, 3)},
             "unknown.pth": {**state, "head.weight": torch.zeros(1)}, "list.pth": [1, 2]}
    for name, content in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: .*state dict") as caught:
            resnet.build("resnet18", 32, tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "junk.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="junk.pth: not a readable"):
        resnet.build("resnet18", 32, tmp_path / "junk.pth")
    with pytest.raises(FileNotFoundError, match="gone.pth: no such weights"):
        resnet.build("resnet18", 32, tmp_path / "gone.pth")
    with pytest.raises(ValueError, match="valid: resnet18, resnet50, resnet101, resnet_tiny"):
        resnet.build("vgg16", 32)
    with pytest.raises(ValueError, match="output stride 12 is not one of 32, 16, 8"):
        resnet.build("resnet18", 12)
    with pytest.raises(ValueError, match="resnet_tiny has no ImageNet weights"):
        resnet.build("resnet_tiny", 4, "imagenet")


def test_imagenet_offline_says_where_the_file_goes(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="put it at .*checkpoints/resnet18-f37072fd.pth"):
        resnet.build("resnet18", 32, "imagenet")


def test_lifts_out_alone(tmp_path):
    shutil.copy(resnet.__file__, tmp_path)
    code = "import resnet, torch; print(*resnet.build('resnet_tiny', 4)(torch.rand(1, 3, 32, 40)).shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "1 48 8 10", done.stderr
