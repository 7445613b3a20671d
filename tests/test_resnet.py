"""ResNets: parity with torchvision, output strides, frozen batch norm."""
import pytest
import torch
import torchvision
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.transforms.v2.functional import normalize

from clipwsss.networks import resnet


def randomise(model: torch.nn.Module) -> None:
    """Give batch norm non-trivial statistics, so that a wrongly placed one shows."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)


def last_map(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The last map of a torchvision network."""
    features = normalize(images, resnet.IMAGENET_MEAN, resnet.IMAGENET_STD)
    for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        features = getattr(network, part)(features)
    return features


def load_theirs(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")})


@pytest.mark.smoke
def test_blocks_draw_and_compute_as_torchvisions_bit_for_bit():
    def shortcut():
        return torch.nn.Sequential(torch.nn.Conv2d(8, width, 1, 2, bias=False), torch.nn.BatchNorm2d(width))

    for ours, theirs, width in ((resnet.BasicBlock, BasicBlock, 6), (resnet.Bottleneck, Bottleneck, 24)):
        results = []
        for block in (ours, theirs):
            torch.manual_seed(4)
            module = block(8, 6, 2, shortcut())
            images = torch.randn(2, 8, 9, 12, requires_grad=True)
            output = module(images)
            output.square().sum().backward()
            results.append({**module.state_dict(), "output": output, "gradient": images.grad})
        assert list(results[0]) == list(results[1])
        for name, value in results[0].items():
            assert torch.equal(value, results[1][name]), (ours.__name__, name)


def test_equals_torchvision_at_stride_32():
    images = torch.rand(2, 3, 65, 97)
    for name in ("resnet18", "resnet50", "resnet101"):
        theirs = torchvision.models.get_model(name, weights=None).eval()
        randomise(theirs)
        ours = resnet.build(name, 32).eval()
        load_theirs(ours, theirs)
        with torch.no_grad():
            expected = last_map(theirs, images)
            result = ours(images)
        assert result.shape == (2, ours.channels[-1], 3, 4), name
        assert (result - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def test_dilation_equals_torchvisions():
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    randomise(theirs)
    ours = resnet.build("resnet50", 8, dilate=True).eval()
    load_theirs(ours, theirs)
    images = torch.rand(1, 3, 64, 48)
    with torch.no_grad():
        expected = last_map(theirs, images)
        assert (ours(images) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_dilated_network_computes_the_same_at_more_places():
    images = torch.rand(1, 3, 75, 120)
    for name, caffe in (("resnet18", False), ("resnet50", False), ("resnet50", True)):
        coarse = resnet.build(name, 32, caffe=caffe).eval()
        randomise(coarse)
        with torch.no_grad():
            expected = coarse(images)
        for output_stride in (16, 8):
            fine = resnet.build(name, output_stride, dilate=True, caffe=caffe).eval()
            fine.load_state_dict(coarse.state_dict())
            step = 32 // output_stride
            with torch.no_grad():
                result = fine(images)[..., ::step, ::step]
            assert result.shape == expected.shape, (name, caffe, output_stride)
            assert (result - expected).abs().max() <= 1e-5 * expected.abs().max(), (name, caffe, output_stride)


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


def test_unknown_names_and_strides_are_refused():
    with pytest.raises(ValueError, match="valid: resnet18, resnet50, resnet101, resnet_tiny"):
        resnet.build("vgg16", 32)
    with pytest.raises(ValueError, match="output stride 12 is not one of 32, 16, 8"):
        resnet.build("resnet18", 12)


def test_published_weights_are_torchvisions_first_ones():
    for name, (url, sha256_prefix) in resnet.RESNET_WEIGHTS.items():
        assert url == torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
        assert url.endswith(f"{name}-{sha256_prefix}.pth")
