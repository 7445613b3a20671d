"""ResNets with output stride 32, 16 or 8 under torchvision's parameter names (a leaf module).

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; dilation in place of stride: Chen et
al., "DeepLab", PAMI 2018. Networks take images in [0, 1] and normalise them themselves.
"""
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN, CAFFE_STD = tuple(value / 255 for value in (122.675, 116.669, 104.008)), (1 / 255,) * 3


class ResNetSpec(NamedTuple):
    """Shape of a network: block type, then for each stage its number of blocks, planes, stride, dilation."""
    block: type[nn.Module]
    depths: tuple[int, ...]
    planes: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    stem_kernel: int = 7
    stem_width: int = 64
    pooled: bool = True
    output_strides: tuple[int, ...] = (32, 16, 8)


SPECS = {
    "resnet18": ResNetSpec(BasicBlock, (2, 2, 2, 2)),
    "resnet50": ResNetSpec(Bottleneck, (3, 4, 6, 3)),
    "resnet101": ResNetSpec(Bottleneck, (3, 4, 23, 3)),
    "resnet_tiny": ResNetSpec(BasicBlock, (0, 1, 1, 1), (16, 32, 48, 48), (1, 2, 1, 1), (1, 1, 2, 2),
                        stem_kernel=3, stem_width=16, pooled=False, output_strides=(4,)),
}
RESNETS = tuple(SPECS)


class ResNet(nn.Module):
    """Feature extractor `images [B,3,H,W] in [0,1] -> [B,C,h,w]` with stages conv1/bn1, layer1 .. layer4.

    output_stride: H/h; the last stages lose their strides. With `dilate` the convolutions behind are dilated
    instead, as by torchvision's replace_stride_with_dilation; IRN's generator does without.
    frozen_bn: batch norm stays in eval mode under .train(); its scale and shift still learn, as in IRN.
    caffe: the layout of DeepLab's published weights: a bottleneck's stride in its first 1x1 convolution,
    pooling that rounds up, pixels 0..255 minus their mean. channels: widths of the maps of `stages`.
    """

    def __init__(self, spec: ResNetSpec, output_stride: int, dilate: bool = False, frozen_bn: bool = False,
                 caffe: bool = False) -> None:
        super().__init__()
        if output_stride not in spec.output_strides:
            valid = ", ".join(map(str, spec.output_strides))
            raise ValueError(f"output stride {output_stride} is not one of {valid}")
        self.frozen_bn = frozen_bn
        kernel = spec.stem_kernel
        self.conv1 = nn.Conv2d(3, spec.stem_width, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(spec.stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=caffe) if spec.pooled else nn.Identity()
        reached, dilation, self.channels = 4 if spec.pooled else 2, 1, [spec.stem_width]
        stages = zip(spec.depths, spec.planes, spec.strides, spec.dilations)
        for index, (depth, planes, stride, own) in enumerate(stages):
            before = dilation * own
            if reached * stride > output_stride:
                dilation, stride = dilation * stride if dilate else 1, 1
            reached *= stride
            stage = _make_stage(spec.block, self.channels[-1], planes, depth, stride, caffe)
            _dilate(stage, dilation * own if caffe else before, dilation * own)
            self.add_module(f"layer{index + 1}", stage)
            self.channels.append(planes * spec.block.expansion if depth else self.channels[-1])
        mean, std = (CAFFE_MEAN, CAFFE_STD) if caffe else (IMAGENET_MEAN, IMAGENET_STD)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        for module in self.modules():  # as torchvision's
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, images: Tensor) -> list[Tensor]:
        """Five maps of images [B,3,H,W] in [0,1]: the stem after pooling, then layer1 .. layer4."""
        features = (images - self.mean) / self.std
        maps = [self.maxpool(self.relu(self.bn1(self.conv1(features))))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Last feature map [B,C,h,w] of images [B,3,H,W] in [0,1]."""
        return self.stages(images)[-1]

    def train(self, mode: bool = True) -> "ResNet":
        """Switch training mode; batch norm stays in eval mode where `frozen_bn`."""
        super().train(mode)
        for module in self.batch_norms() if self.frozen_bn else ():
            module.eval()
        return self

    def batch_norms(self) -> list[nn.Module]:
        """Every batch norm."""
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]


def _make_stage(block: type[nn.Module], width_in: int, planes: int, depth: int, stride: int,
                caffe: bool) -> nn.Sequential:
    """One stage; its first block has the stride and, where the maps change, a shortcut of its own."""
    width, shortcut = planes * block.expansion, None
    if stride != 1 or width_in != width:
        shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    blocks = [block(width if index else width_in, planes, 1 if index else stride,
                    None if index else shortcut) for index in range(depth)]
    if caffe and blocks:
        blocks[0].conv1.stride, blocks[0].conv2.stride = blocks[0].conv2.stride, blocks[0].conv1.stride
    return nn.Sequential(*blocks)


def _dilate(stage: nn.Module, first: int, others: int) -> None:
    """Dilate a stage's 3x3 convolutions; the first of them has (or had) the stride."""
    convolutions = [conv for conv in stage.modules()
                    if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)]
    for conv, rate in zip(convolutions, [first] + [others] * len(convolutions)):
        conv.dilation = conv.padding = (rate, rate)


def imagenet_state(name: str) -> dict[str, Tensor]:
    """torchvision's first ImageNet weights (the ones the papers start from), from its cache or its server."""
    if name == "resnet_tiny":
        raise ValueError("resnet_tiny has no ImageNet weights; use weights none or a path")
    weights = get_model_weights(name).IMAGENET1K_V1
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise FileNotFoundError(f"could not download {weights.url} ({error}); fetch that file elsewhere and "
                                f"put it at {place}") from None
    except RuntimeError as error:
        raise ValueError(f"{place}: damaged weights ({error}); delete the file and try again") from None


def load_state(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Strictly load a state dict; a classifier `fc.*` is left out, batch counters may be missing.

    Raises ValueError, naming `source`, on a missing or unknown name and on a tensor of another shape.
    """
    try:  # a plain dict has no version, so that batch norms do not ask for their counters
        model.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
    except RuntimeError as error:
        reason = " ".join(str(error).split()).partition(": ")[2][:160]
        raise ValueError(f"{source}: not a state dict of this {type(model).__name__} ({reason})") from None


def build(name: str, output_stride: int, weights: str | Path = "none", frozen_bn: bool = False,
          dilate: bool = False, caffe: bool = False) -> ResNet:
    """Build one of RESNETS; the other options are `ResNet`'s.

    weights: "none" (random), "imagenet" (torchvision's) or the path of a torchvision state dict, or of a
    checkpoint whose "state_dict" has these names behind "backbone.". Raises ValueError for an unknown name,
    stride or unfit file, FileNotFoundError for weights out of reach.
    """
    if name not in SPECS:
        raise ValueError(f"unknown backbone '{name}'; valid: {', '.join(RESNETS)}")
    model = ResNet(SPECS[name], output_stride, dilate, frozen_bn, caffe)
    if str(weights) == "imagenet":
        load_state(model, imagenet_state(name), "imagenet")
    elif str(weights) != "none":
        if not Path(weights).is_file():
            raise FileNotFoundError(f"{weights}: no such weights file; use none, imagenet or a file's path")
        try:
            state = dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as error:
            raise ValueError(f"{weights}: not a readable state dict ({type(error).__name__})") from None
        if "state_dict" in state:
            state = {key.removeprefix("backbone."): value for key, value in state["state_dict"].items()
                     if key.startswith("backbone.")}
            if not state:
                raise ValueError(f"{weights}: holds no ResNet, as this network is; give imagenet, none or "
                                 "another file")
        load_state(model, state, weights)
    return model
