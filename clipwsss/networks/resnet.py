"""ResNets with output stride 32, 16 or 8 under torchvision's parameter names (a leaf module).

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. Dilation in place of stride: Chen et
al., "DeepLab", PAMI 2018. The networks take images in [0, 1] and normalise them themselves.
`fuse_batch_norm` makes them, and networks that contain them, faster for inference.
"""
import copy
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CAFFE_MEAN = (122.675 / 255, 116.669 / 255, 104.008 / 255)
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)
# torchvision's first ImageNet weights, which the papers start from: URL and the first digits of the SHA-256.
RESNET_WEIGHTS = {
    "resnet18": ("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd"),
    "resnet50": ("https://download.pytorch.org/models/resnet50-0676ba61.pth", "0676ba61"),
    "resnet101": ("https://download.pytorch.org/models/resnet101-63fe2227.pth", "63fe2227"),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to the input or, where shapes change, to its projection (ResNet-18)."""
    expansion = 1

    def __init__(self, width_in: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        projection = None  # made first, so that its random weights are drawn in torchvision's order
        if stride != 1 or width_in != planes:
            projection = nn.Sequential(nn.Conv2d(width_in, planes, 1, stride, bias=False),
                                       nn.BatchNorm2d(planes))
        self.conv1 = nn.Conv2d(width_in, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = projection

    def forward(self, features: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(features)))
        out = self.bn2(self.conv2(out))
        out += features if self.downsample is None else self.downsample(features)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, added as in `BasicBlock`; the 3x3 has the stride (ResNet-50, 101)."""
    expansion = 4

    def __init__(self, width_in: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        width = planes * self.expansion
        projection = None
        if stride != 1 or width_in != width:
            projection = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False),
                                       nn.BatchNorm2d(width))
        self.conv1 = nn.Conv2d(width_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection

    def forward(self, features: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(features)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += features if self.downsample is None else self.downsample(features)
        return self.relu(out)


class ResNetSpec(NamedTuple):
    """Shape of a network: block type, then for each stage its number of blocks, planes, stride, dilation.

    pooled: the stem has a max pooling of stride 2. output_strides: those that the network can be built with.
    """
    block: type[nn.Module]
    depths: tuple[int, int, int, int]
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    strides: tuple[int, int, int, int] = (1, 2, 2, 2)
    dilations: tuple[int, int, int, int] = (1, 1, 1, 1)
    stem_kernel: int = 7
    stem_width: int = 64
    pooled: bool = True
    output_strides: tuple[int, ...] = (32, 16, 8)


RESNET_SPECS = {
    "resnet18": ResNetSpec(BasicBlock, (2, 2, 2, 2)),
    "resnet50": ResNetSpec(Bottleneck, (3, 4, 6, 3)),
    "resnet101": ResNetSpec(Bottleneck, (3, 4, 23, 3)),
    "resnet_tiny": ResNetSpec(BasicBlock, (0, 1, 1, 1), (16, 32, 48, 48), (1, 2, 1, 1), (1, 1, 2, 2),
                              stem_kernel=3, stem_width=16, pooled=False, output_strides=(4,)),
}
RESNETS = tuple(RESNET_SPECS)


class ResNet(nn.Module):
    """Feature maps of images [B,3,H,W] in [0,1]: five maps [B,C,h,w], of the stem and of layer1 .. layer4.

    name: one of RESNETS, with random weights. output_stride: H/h of the last map; the last stages lose their
    strides. With `dilate` the convolutions behind a lost stride are dilated, as by torchvision's
    replace_stride_with_dilation; IRN's generator does without. frozen_bn: batch norm stays in eval mode under
    .train(); its scale and shift still learn, as in IRN. caffe: the layout of DeepLab's published weights. A
    bottleneck has its stride in the first 1x1 convolution, the pooling rounds up, and pixels are 0..255 minus
    their mean. ValueError: an unknown name, or an output stride that the network does not have.
    channels: the widths C of the five maps. kept_in_eval: the batch norms that stay in eval mode under
    .train(): all of them with `frozen_bn`, else none.
    """

    def __init__(self, name: str, output_stride: int, dilate: bool = False, frozen_bn: bool = False,
                 caffe: bool = False) -> None:
        super().__init__()
        if name not in RESNET_SPECS:
            raise ValueError(f"unknown backbone '{name}'; valid: {', '.join(RESNETS)}")
        spec = RESNET_SPECS[name]
        if output_stride not in spec.output_strides:
            valid = ", ".join(map(str, spec.output_strides))
            raise ValueError(f"--output-stride {output_stride}: {name} has {valid}")
        self.conv1 = nn.Conv2d(3, spec.stem_width, spec.stem_kernel, stride=2, padding=spec.stem_kernel // 2,
                               bias=False)
        self.bn1 = nn.BatchNorm2d(spec.stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=caffe) if spec.pooled else nn.Identity()
        self.channels = [spec.stem_width]
        reached = 4 if spec.pooled else 2  # the output stride up to here
        dilation = 1  # that of the stages behind the lost strides
        for index in range(4):
            stride = spec.strides[index]
            dilation_before = dilation
            if reached * stride > output_stride:
                if dilate:
                    dilation *= stride
                stride = 1
            reached *= stride
            stage = nn.Sequential()
            width = self.channels[-1]
            for number in range(spec.depths[index]):
                stage.append(spec.block(width, spec.planes[index], stride if number == 0 else 1))
                width = spec.planes[index] * spec.block.expansion
            if caffe and len(stage) > 0:  # the stride is that of the 1x1 convolution before the 3x3 one
                stage[0].conv1.stride = (stride, stride)
                stage[0].conv2.stride = (1, 1)
                dilation_before = dilation
            # The 3x3 convolution that has the stride, or has lost it, keeps the dilation of the stage before.
            rate = dilation_before * spec.dilations[index]
            for module in stage.modules():
                if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                    module.dilation = (rate, rate)
                    module.padding = (rate, rate)
                    rate = dilation * spec.dilations[index]
            self.add_module(f"layer{index + 1}", stage)
            self.channels.append(width)
        mean = CAFFE_MEAN if caffe else IMAGENET_MEAN
        std = CAFFE_STD if caffe else IMAGENET_STD
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        for module in self.modules():  # as torchvision initialises its ResNets
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.kept_in_eval = []
        if frozen_bn:
            self.kept_in_eval = [item for item in self.modules() if isinstance(item, nn.BatchNorm2d)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """The five maps; that of the stem is taken after its pooling."""
        features = (images - self.mean) / self.std
        maps = [self.maxpool(self.relu(self.bn1(self.conv1(features))))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def train(self, mode: bool = True) -> "ResNet":
        """Switch training mode; the batch norms of `kept_in_eval` stay in eval mode."""
        super().train(mode)
        for module in self.kept_in_eval:
            module.eval()
        return self


def fuse_batch_norm(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose batch norms are fused into the convolutions before; equal up to rounding.

    A norm is fused where it alone takes the convolution's output and both are called once. A network whose
    graph torch.fx cannot trace is copied as it is. The copy is not compiled.
    """
    ready = copy.deepcopy(network).eval()
    modules = dict(ready.named_modules())
    if not any(isinstance(module, nn.BatchNorm2d) for module in modules.values()):
        return ready
    try:
        graph = fx.symbolic_trace(ready).graph
    except fx.proxy.TraceError:  # the computation depends on values
        return ready
    calls = Counter(node.target for node in graph.nodes)
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op != "call_module" or not isinstance(modules[before.target], nn.Conv2d):
            continue
        if len(before.users) == 1 and calls[node.target] == 1 and calls[before.target] == 1:
            fused = fuse_conv_bn_eval(modules[before.target], modules[node.target])
            ready.set_submodule(before.target, fused)
            ready.set_submodule(node.target, nn.Identity())
    return ready
