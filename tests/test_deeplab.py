"""DeepLab: published checkpoints against a plain forward, multi-scale training, losses, parameter groups."""
import importlib
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import Conv2dNormActivation

from clipwsss.networks import deeplab, resnet, vit
from clipwsss.training import joined_loss

MEAN_BGR = torch.tensor([104.008, 116.669, 122.675]).view(1, 3, 1, 1)
CAFFE = deeplab.Design("deeplabv2", "resnet50", 8, caffe=True)
BLOCKS = (3, 4, 6, 3)  # ResNet-50: the 101's third stage only repeats its block


def published_state(n_labels: int, head: str) -> dict[str, torch.Tensor]:
    """Random weights under deeplab-pytorch's names, small enough to keep activations near 1."""
    generator = torch.Generator().manual_seed(5)
    state = {}

    def add(name: str, width_in: int, width: int, kernel: int) -> None:
        scale = (2 / (width_in * kernel**2)) ** 0.5
        weight = torch.randn(width, width_in, kernel, kernel, generator=generator)
        state[f"{name}.conv.weight"] = scale * weight
        for field, low, high in (("weight", 0.4, 0.7), ("bias", -0.1, 0.1), ("running_mean", -0.1, 0.1),
                                 ("running_var", 0.5, 1.5)):
            state[f"{name}.bn.{field}"] = low + (high - low) * torch.rand(width, generator=generator)

    add("layer1.conv1", 3, 64, 7)
    state["layer1.conv1.conv.weight"] /= 50
    width_in = 64
    for stage, count in enumerate(BLOCKS, 2):
        width = 64 * 2**stage
        for block in range(1, count + 1):
            name = f"layer{stage}.block{block}"
            add(f"{name}.reduce", width_in, width // 4, 1)
            add(f"{name}.conv3x3", width // 4, width // 4, 3)
            add(f"{name}.increase", width // 4, width, 1)
            if block == 1:
                add(f"{name}.shortcut", width_in, width, 1)
            width_in = width
    if head == "fc":
        return {**state, "fc.weight": torch.zeros(91, 2048, 1, 1), "fc.bias": torch.zeros(91)}
    for index in range(4):
        state[f"aspp.c{index}.weight"] = 0.01 * torch.randn(n_labels, 2048, 3, 3, generator=generator)
        state[f"aspp.c{index}.bias"] = torch.randn(n_labels, generator=generator)
    return {f"base.{name}": value for name, value in state.items()}


def plain_forward(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """The published network written out over its own names: pixels are BGR, 0..255, minus the mean."""
    def unit(name, features, stride=1, dilation=1, relu=True):
        weight = state[f"base.{name}.conv.weight"]
        padding = dilation * (weight.shape[-1] // 2)
        features = F.conv2d(features, weight, None, stride, padding, dilation)
        norm = (state[f"base.{name}.bn.{item}"] for item in ("running_mean", "running_var", "weight", "bias"))
        features = F.batch_norm(features, *norm, eps=1e-5)
        return F.relu(features) if relu else features

    features = F.max_pool2d(unit("layer1.conv1", pixels, 2), 3, 2, 1, ceil_mode=True)
    for stage, (count, stride, dilation) in enumerate(zip(BLOCKS, (1, 2, 1, 1), (1, 1, 2, 4)), 2):
        for block in range(1, count + 1):
            name, step = f"layer{stage}.block{block}", stride if block == 1 else 1
            inner = unit(f"{name}.reduce", features, step)
            inner = unit(f"{name}.increase", unit(f"{name}.conv3x3", inner, 1, dilation), relu=False)
            short = unit(f"{name}.shortcut", features, step, relu=False) if block == 1 else features
            features = F.relu(inner + short)
    return sum(F.conv2d(features, state[f"base.aspp.c{index}.weight"], state[f"base.aspp.c{index}.bias"],
                        padding=rate, dilation=rate) for index, rate in enumerate((6, 12, 18, 24)))


def test_published_checkpoint_gives_the_same_logits():
    state = published_state(21, "aspp")
    network = deeplab.build_deeplab(CAFFE, 21).eval()
    assert deeplab.is_deeplab_pytorch(state) and not deeplab.is_deeplab_pytorch(network.state_dict())
    network.load_state_dict(deeplab.rename_deeplab_pytorch(state))
    images = torch.rand(1, 3, 65, 92)
    pixels = images.flip(1) * 255 - MEAN_BGR
    with torch.no_grad():
        expected = [plain_forward(state, F.interpolate(pixels, scale_factor=scale, mode="bilinear"))
                    for scale in (1.0, 0.75, 0.5)]
        resized = [F.interpolate(item, expected[0].shape[-2:], mode="bilinear") for item in expected]
        expected.append(torch.stack(resized).amax(0))
        outputs = deeplab.multi_scale_logits(network, images)
    assert len(outputs) == 4 and outputs[0].shape == (1, 21, 9, 12)
    for output, reference in zip(outputs, expected):
        assert output.shape == reference.shape
        assert (output - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_v1_checkpoint_has_no_head_and_loads_into_the_backbone():
    state = published_state(21, "fc")
    network = deeplab.build_deeplab(CAFFE, 21)
    renamed = deeplab.rename_deeplab_pytorch(state)
    assert not any(name.startswith(("aspp.", "fc.")) for name in renamed)
    missing, unexpected = network.load_state_dict(renamed, strict=False)
    assert unexpected == [] and all(name.startswith("aspp.") for name in missing)
    shortcut = network.backbone.layer4[0].downsample[0].weight
    assert torch.equal(shortcut, state["layer5.block1.shortcut.conv.weight"])


def test_blocks_draw_and_compute_as_torchvisions_bit_for_bit():
    builders = {
        "aspp": (lambda: deeplab.PooledASPP(12, (2, 3), 8), lambda: ASPP(12, [2, 3], 8)),
        "reduce": (lambda: deeplab._conv_norm_relu(12, 8, 1), lambda: Conv2dNormActivation(12, 8, 1)),
        "decoder": (lambda: deeplab._conv_norm_relu(12, 8, 3), lambda: Conv2dNormActivation(12, 8)),
    }
    for part, pair in builders.items():
        results = []
        for build in pair:
            torch.manual_seed(4)
            module = build()
            features = torch.randn(2, 12, 9, 7, requires_grad=True)
            output = module(features)  # in training, with the draws of dropout
            output.square().sum().backward()
            results.append({**module.state_dict(), "output": output, "gradient": features.grad})
        assert list(results[0]) == list(results[1]), part
        for name, value in results[0].items():
            assert torch.equal(value, results[1][name]), (part, name)


@pytest.mark.smoke
@pytest.mark.parametrize("name, expected", [("deeplabv2", (2, 7, 9, 12)), ("deeplabv3plus", (2, 7, 36, 48))])
def test_shapes_groups_and_frozen_batch_norm(name, expected):
    network = deeplab.build_deeplab(deeplab.Design(name, "resnet_tiny", 4, (1, 2, 3)), 7).train()
    images = torch.rand(2, 3, 36, 48)
    logits = network(images)
    assert logits.shape == expected
    assert not network.backbone.bn1.training and not network.backbone.bn1.weight.requires_grad
    groups = network.parameter_groups(1e-3, 5e-4)
    listed = [parameter for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(map(id, listed)))
    assert set(map(id, listed)) == {id(item) for item in network.parameters() if item.requires_grad}
    if name == "deeplabv2":
        assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-2, 2e-2])
        assert [group["weight_decay"] for group in groups] == [5e-4, 5e-4, 0.0]
        assert [{item.dim() for item in group["params"]} for group in groups[1:]] == [{4}, {1}]
    thawed = deeplab.build_deeplab(deeplab.Design(name, "resnet_tiny", 4, frozen_bn=False), 7).train()
    assert thawed.backbone.bn1.training and thawed.backbone.bn1.weight.requires_grad


def test_aspp_is_the_sum_of_its_branches():
    network = deeplab.build_deeplab(deeplab.Design("deeplabv2", "resnet_tiny", 4, (1, 2)), 3).eval()
    features = torch.randn(1, network.backbone.channels[-1], 9, 7)
    network.backbone = torch.nn.Identity()
    first = F.conv2d(features, network.aspp[0].weight, network.aspp[0].bias, padding=1)
    second = F.conv2d(features, network.aspp[1].weight, network.aspp[1].bias, padding=2, dilation=2)
    assert torch.allclose(network(features), first + second, atol=1e-6)


def loss_of(outputs, masks, balanced=False):
    """The loss that `fit` makes of the terms in one process."""
    return joined_loss(deeplab.segmentation_terms(outputs, masks, balanced))["loss"]


def test_loss_by_hand_with_ignored_and_balanced_pixels():
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 1] = torch.tensor([1.0, 2.0, 3.0, 9.0])
    masks = torch.tensor([[[0, 1, 0, 255]]])
    losses = F.softplus(torch.tensor([1.0, -2.0, 3.0]))
    assert torch.isclose(loss_of([logits], masks), losses.mean())
    halves = (losses[[0, 2]].mean() + losses[1]) / 2
    assert torch.isclose(loss_of([logits], masks, balanced=True), halves)
    assert torch.isclose(loss_of([logits, logits], masks), 2 * losses.mean())
    assert loss_of([logits], torch.full((1, 1, 4), 255)) == 0
    coarse = torch.zeros(1, 2, 1, 2)
    coarse[0, 1] = torch.tensor([1.0, 2.0])  # takes the labels of pixels 1 and 3, whose centres are next
    assert torch.isclose(loss_of([coarse], masks), F.softplus(torch.tensor(-1.0)))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="valid: deeplabv2, deeplabv3plus"):
        deeplab.build_deeplab(deeplab.Design("unet", "resnet_tiny", 4), 3)


def test_leaves_lift_out_without_torchvision(tmp_path, monkeypatch):
    """deeplab.py beside resnet.py, and resnet.py and vit.py alone, with no other module to import from."""
    (tmp_path / "lifted").mkdir()
    (tmp_path / "lifted" / "__init__.py").touch()
    for module in (deeplab, resnet):
        shutil.copy(module.__file__, tmp_path / "lifted")
    for module in (resnet, vit):
        shutil.copy(module.__file__, tmp_path / f"lifted_{module.__name__.rpartition('.')[2]}.py")
    for absent in ("clipwsss", "torchvision"):
        monkeypatch.setitem(sys.modules, absent, None)  # its import fails
    monkeypatch.syspath_prepend(tmp_path)
    lifted = importlib.import_module("lifted.deeplab")
    network = lifted.build_deeplab(lifted.Design("deeplabv2", "resnet_tiny", 4), 3)
    assert network(torch.rand(1, 3, 32, 40)).shape == (1, 3, 8, 10)
    lifted = importlib.import_module("lifted_resnet")
    assert lifted.ResNet("resnet_tiny", 4)(torch.rand(1, 3, 32, 40))[-1].shape == (1, 48, 8, 10)
    lifted = importlib.import_module("lifted_vit")
    assert lifted.VisionTransformer(lifted.VIT_SPECS["deit_toy"])(torch.rand(1, 3, 96, 64)).shape == (1, 97, 64)
