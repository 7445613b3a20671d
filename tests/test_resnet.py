"""ResNets: parity with torchvision, output strides, frozen and fused batch norm."""
import pytest
import torch
import torchvision
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.transforms.v2.functional import normalize

from clipwsss.cams.generator import build_generator
from clipwsss.networks import deeplab, resnet


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Give batch norm statistics, scales and shifts that do something, so that a wrongly placed one shows."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.uniform_(0.5, 1.0, generator=generator)
            module.bias.normal_(std=0.1, generator=generator)


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
            module = block(8, 6, 2) if block is ours else block(8, 6, 2, shortcut())
            images = torch.randn(2, 8, 9, 12, requires_grad=True)
            output = module(images)
            output.square().sum().backward()
            results.append({**module.state_dict(), "output": output, "gradient": images.grad})
        assert list(results[0]) == list(results[1])
        for name, value in results[0].items():
            assert torch.equal(value, results[1][name]), (ours.__name__, name)


def test_equals_torchvision_at_stride_32():
    images = torch.rand(2, 3, 33, 65)
    for name in ("resnet18", "resnet50", "resnet101"):
        theirs = torchvision.models.get_model(name, weights=None).eval()
        randomise(theirs)
        ours = resnet.ResNet(name, 32).eval()
        load_theirs(ours, theirs)
        with torch.no_grad():
            expected = last_map(theirs, images)
            result = ours(images)[-1]
        assert result.shape == (2, ours.channels[-1], 2, 3), name
        assert (result - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def test_dilation_equals_torchvisions():
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    randomise(theirs)
    ours = resnet.ResNet("resnet50", 8, dilate=True).eval()
    load_theirs(ours, theirs)
    images = torch.rand(1, 3, 64, 48)
    with torch.no_grad():
        expected = last_map(theirs, images)
        assert (ours(images)[-1] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_dilated_network_computes_the_same_at_more_places():
    images = torch.rand(1, 3, 75, 120)
    for name, caffe in (("resnet18", False), ("resnet50", True)):
        coarse = resnet.ResNet(name, 32, caffe=caffe).eval()
        randomise(coarse)
        with torch.no_grad():
            expected = coarse(images)[-1]
        for output_stride in (16, 8):
            fine = resnet.ResNet(name, output_stride, dilate=True, caffe=caffe).eval()
            fine.load_state_dict(coarse.state_dict())
            step = 32 // output_stride
            with torch.no_grad():
                result = fine(images)[-1][..., ::step, ::step]
            assert result.shape == expected.shape, (name, caffe, output_stride)
            assert (result - expected).abs().max() <= 1e-5 * expected.abs().max(), (name, caffe, output_stride)


def test_stages_strides_and_channels():
    images = torch.rand(1, 3, 32, 64)
    cases = (("resnet50", 16, (4, 4, 8, 16, 16)), ("resnet18", 8, (4, 4, 8, 8, 8)),
             ("resnet_tiny", 4, (2, 2, 4, 4, 4)))
    for name, output_stride, strides in cases:
        model = resnet.ResNet(name, output_stride).eval()
        maps = model(images)
        assert [tuple(item.shape[1:]) for item in maps] == [
            (width, 32 // stride, 64 // stride) for width, stride in zip(model.channels, strides)]
    with torch.device("meta"):
        irn = resnet.ResNet("resnet50", 16)  # IRN's generator: stride 1 in layer4 and no dilation at all
        dilated_network = resnet.ResNet("resnet50", 16, dilate=True)
    assert all(module.dilation == (1, 1) for module in irn.modules() if isinstance(module, torch.nn.Conv2d))
    dilated = {name for name, module in dilated_network.named_modules()
               if isinstance(module, torch.nn.Conv2d) and module.dilation == (2, 2)}
    assert dilated == {"layer4.1.conv2", "layer4.2.conv2"}


def test_frozen_batch_norm_keeps_statistics_and_learns_its_scale():
    model = resnet.ResNet("resnet_tiny", 4, frozen_bn=True).train()
    before = model.layer2[0].bn1.running_mean.clone()
    model(torch.rand(2, 3, 32, 40))[-1].sum().backward()
    assert model.training and not model.bn1.training
    assert torch.equal(model.layer2[0].bn1.running_mean, before)
    assert model.layer2[0].bn1.weight.grad is not None
    assert resnet.ResNet("resnet_tiny", 4).train().bn1.training


def test_normalisation_is_inside_and_not_in_the_state_dict():
    model = resnet.ResNet("resnet_tiny", 4)
    assert not {"mean", "std"} & model.state_dict().keys()
    grey = torch.tensor(resnet.IMAGENET_MEAN).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    model.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    seen = []
    model(grey)
    assert seen[0].abs().max() < 1e-6


def test_unknown_names_and_strides_are_refused():
    with pytest.raises(ValueError, match="valid: resnet18, resnet50, resnet101, resnet_tiny"):
        resnet.ResNet("vgg16", 32)
    with pytest.raises(ValueError, match="--output-stride 12: resnet18 has 32, 16, 8"):
        resnet.ResNet("resnet18", 12)


def test_published_weights_are_torchvisions_first_ones():
    for name, (url, sha256_prefix) in resnet.RESNET_WEIGHTS.items():
        assert url == torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
        assert url.endswith(f"{name}-{sha256_prefix}.pth")


@pytest.mark.smoke
def test_fused_batch_norm_gives_equal_outputs_and_keeps_the_network():
    for network in (build_generator(["a", "b"], "resnet18", "none"),
                    deeplab.build_deeplab(deeplab.Design("deeplabv3plus", "resnet_tiny", 4), 3)):
        kind = type(network).__name__
        torch.manual_seed(0)
        randomise(network)
        images = torch.rand(2, 3, 50, 66)
        before = network.state_dict().keys()
        ready = resnet.fuse_batch_norm(network.train())
        with torch.inference_mode():
            answer = ready(images)
            expected = network.eval()(images)
        assert (answer - expected).abs().max() <= 1e-4 * expected.abs().max(), kind
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in ready.modules()), kind
        assert network.state_dict().keys() == before and ready is not network, kind


def test_what_cannot_be_fused_is_copied_as_it_is():
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)

        def forward(self, images):
            return self.norm(images) if images.sum() > 0 else images

    for network in (torch.nn.Conv2d(3, 4, 1), Branching()):
        ready, state = resnet.fuse_batch_norm(network.train()), network.state_dict()
        assert network.training and not ready.training and type(ready) is type(network)
        assert all(torch.equal(value, state[name]) for name, value in ready.state_dict().items())
