"""DeepLabV2 and DeepLabV3+ on the ResNets of this package (a leaf module that needs only `resnet`).

V2: Chen et al., "DeepLab", PAMI 2018. V3+: Chen et al., "Encoder-Decoder with Atrous Separable Convolution",
ECCV 2018. The networks have n_labels = K + 1 outputs, of which 0 is the background. What the papers leave
open follows the repository deeplab-pytorch.
"""
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import resnet

IGNORE = 255
DEEPLABS = ("deeplabv2", "deeplabv3plus")
# The layers of a bottleneck: deeplab-pytorch's names and torchvision's.
TORCHVISION_LAYERS = {
    "reduce.conv": "conv1", "reduce.bn": "bn1",
    "conv3x3.conv": "conv2", "conv3x3.bn": "bn2",
    "increase.conv": "conv3", "increase.bn": "bn3",
    "shortcut.conv": "downsample.0", "shortcut.bn": "downsample.1",
}


class Design(NamedTuple):
    """The architecture of a network: one of DEEPLABS on one of resnet.RESNETS.

    rates: dilations of the ASPP. None stands for 6 12 18 24 (deeplabv2), 6 12 18 (deeplabv3plus at stride 16)
    or 12 24 36 (deeplabv3plus at stride 8). multi_scale: train on several scales; None does for deeplabv2.
    frozen_bn: the backbone's batch norm keeps its statistics, scale and shift. caffe: the layout of
    deeplab-pytorch's checkpoints.
    """
    network: str
    backbone: str
    output_stride: int = 8
    rates: Sequence[int] | None = None
    multi_scale: bool | None = None
    frozen_bn: bool = True
    caffe: bool = False


class DeepLab(nn.Module):
    """What both networks share: a backbone, the training loss and the parameter groups.

    multi_scale: train on the logits at scales 1, 0.75 and 0.5 and on their maximum, as the published V2.
    """

    def __init__(self, backbone: nn.Module, multi_scale: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.multi_scale = multi_scale

    def training_logits(self, images: Tensor) -> list[Tensor]:
        """Logits [B,n_labels,h,w] that the loss is computed from; the last ones have the first ones' size."""
        return multi_scale_logits(self, images) if self.multi_scale else [self(images)]

    def loss_terms(self, images: Tensor, masks: Tensor, balanced: bool = False) -> dict[str, tuple]:
        """`segmentation_terms` of images [B,3,H,W] in [0,1] and masks [B,H,W] (255 is ignored)."""
        return segmentation_terms(self.training_logits(images), masks, balanced)

    def parameter_groups(self, lr: float, weight_decay: float, head_ratio: float = 10.0) -> list[dict]:
        """Optimiser groups: the backbone at `lr`, everything else at `head_ratio` times it."""
        body = [item for item in self.backbone.parameters() if item.requires_grad]
        new = [item for name, item in self.named_parameters() if not name.startswith("backbone.")]
        return [{"params": body, "lr": lr, "weight_decay": weight_decay},
                {"params": new, "lr": head_ratio * lr, "weight_decay": weight_decay}]


class DeepLabV2(DeepLab):
    """A dilated ResNet and an ASPP: the sum of 3x3 convolutions at several rates, each with its bias.

    images [B,3,H,W] in [0,1] -> logits [B,n_labels,h,w] at the backbone's stride (8 as published).
    """
    label_layers = ("aspp.",)  # names of the tensors whose rows are the labels

    def __init__(self, backbone: nn.Module, n_labels: int, rates: Sequence[int] = (6, 12, 18, 24),
                 multi_scale: bool = True) -> None:
        super().__init__(backbone, multi_scale)
        self.aspp = nn.ModuleList(nn.Conv2d(backbone.channels[-1], n_labels, 3, padding=rate, dilation=rate)
                                  for rate in rates)
        for branch in self.aspp:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)[-1]
        return sum(branch(features) for branch in self.aspp)

    def parameter_groups(self, lr: float, weight_decay: float, head_ratio: float = 10.0) -> list[dict]:
        """As above for the ASPP's weights; its biases have twice their rate and no weight decay."""
        body, head = super().parameter_groups(lr, weight_decay, head_ratio)
        head["params"] = [branch.weight for branch in self.aspp]
        biases = [branch.bias for branch in self.aspp]
        return [body, head, {"params": biases, "lr": 2 * head_ratio * lr, "weight_decay": 0.0}]


def _conv_norm_relu(width_in: int, width: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """A convolution without bias that keeps the maps' size, batch norm and ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(nn.Conv2d(width_in, width, kernel, padding=padding, dilation=dilation, bias=False),
                         nn.BatchNorm2d(width), nn.ReLU(inplace=True))


class ImagePooling(nn.Sequential):
    """The ASPP's branch that sees the whole image: a 1x1 convolution of the mean over all positions."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *_conv_norm_relu(width_in, width, 1))

    def forward(self, features: Tensor) -> Tensor:
        pooled = super().forward(features)
        return F.interpolate(pooled, features.shape[-2:], mode="bilinear", align_corners=False)


class PooledASPP(nn.Module):
    """DeepLabV3's atrous spatial pyramid pooling: features [B,C,h,w] -> [B,width,h,w].

    A 1x1 convolution, a 3x3 convolution at each rate and `ImagePooling`, concatenated and projected by a 1x1
    convolution. Parameter names and initialisation are those of torchvision's ASPP.
    """

    def __init__(self, width_in: int, rates: Sequence[int], width: int) -> None:
        super().__init__()
        branches = [_conv_norm_relu(width_in, width, 1)]
        for rate in rates:
            branches.append(_conv_norm_relu(width_in, width, 3, rate))
        branches.append(ImagePooling(width_in, width))
        self.convs = nn.ModuleList(branches)
        self.project = _conv_norm_relu(len(branches) * width, width, 1)
        self.project.append(nn.Dropout(0.5))

    def forward(self, features: Tensor) -> Tensor:
        return self.project(torch.cat([branch(features) for branch in self.convs], dim=1))


class DeepLabV3Plus(DeepLab):
    """A dilated ResNet, an ASPP with image pooling, and a decoder that joins its maps with the first stage's.

    images [B,3,H,W] in [0,1] -> logits [B,n_labels,H,W]. The convolutions are plain, not separable, as in
    deeplab-pytorch.
    """
    label_layers = ("decoder.2.",)

    def __init__(self, backbone: nn.Module, n_labels: int, rates: Sequence[int] = (6, 12, 18),
                 multi_scale: bool = False) -> None:
        super().__init__(backbone, multi_scale)
        width = min(256, backbone.channels[-1] // 2)
        low = width * 48 // 256  # 48 of 256 as published; in proportion for a narrow backbone
        self.aspp = PooledASPP(backbone.channels[-1], rates, width)
        self.reduce = _conv_norm_relu(backbone.channels[1], low, 1)
        self.decoder = nn.Sequential(_conv_norm_relu(width + low, width, 3), _conv_norm_relu(width, width, 3),
                                     nn.Conv2d(width, n_labels, 1))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.backbone(images)
        low = self.reduce(maps[1])
        high = F.interpolate(self.aspp(maps[-1]), low.shape[-2:], mode="bilinear", align_corners=False)
        logits = self.decoder(torch.cat([high, low], 1))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


def build_deeplab(design: Design, n_labels: int) -> DeepLab:
    """The network of a design with random weights.

    ValueError: an unknown network or backbone, or an output stride that the backbone does not have.
    """
    if design.network not in DEEPLABS:
        raise ValueError(f"unknown network '{design.network}'; valid: {', '.join(DEEPLABS)}")
    backbone = resnet.ResNet(design.backbone, design.output_stride, dilate=True,
                             frozen_bn=design.frozen_bn, caffe=design.caffe)
    for module in backbone.kept_in_eval:
        module.requires_grad_(False)
    if design.network == "deeplabv2":
        rates = design.rates or (6, 12, 18, 24)
        multi_scale = True if design.multi_scale is None else design.multi_scale
        return DeepLabV2(backbone, n_labels, rates, multi_scale)
    rates = design.rates or ((12, 24, 36) if design.output_stride == 8 else (6, 12, 18))
    multi_scale = False if design.multi_scale is None else design.multi_scale
    return DeepLabV3Plus(backbone, n_labels, rates, multi_scale)


def multi_scale_logits(network: nn.Module, images: Tensor,
                       scales: Sequence[float] = (1.0, 0.75, 0.5)) -> list[Tensor]:
    """The logits of the images at each scale, and last the maximum of all, at the size of the first ones.

    The published V2 trains on every item of this list, each with a loss of its own, and tests with the last.
    """
    least = 1 / min(images.shape[-2:])  # leaves one pixel of the shorter side
    outputs = []
    for scale in scales:
        scaled = images
        if scale != 1:
            factor = max(scale, least)
            scaled = F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)
        outputs.append(network(scaled))
    size = outputs[0].shape[-2:]
    resized = [F.interpolate(item, size, mode="bilinear", align_corners=False) for item in outputs[1:]]
    return [*outputs, torch.stack([outputs[0], *resized]).amax(0)]


def segmentation_terms(outputs: Sequence[Tensor], masks: Tensor, balanced: bool = False) -> dict[str, tuple]:
    """Cross entropy of every output with the masks as {name: (weight, total over pixels, number of pixels)}.

    outputs: logits [B,n_labels,h,w] of any sizes. masks [B,H,W] (255 is ignored) are resized to each of them:
    a position takes the label of the pixel whose centre is nearest. The loss is the sum over the terms of
    weight * total / number. balanced: the mean over background pixels and the mean over foreground pixels
    count half each.
    """
    masks = masks[:, None].to(torch.uint8)
    terms = {}
    for number, logits in enumerate(outputs):
        target = F.interpolate(masks, logits.shape[-2:], mode="nearest-exact")[:, 0].long()
        losses = F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="none")
        background = target == 0
        counted = target != IGNORE
        foreground = counted & ~background
        if balanced:
            terms[f"background_{number}"] = (0.5, (losses * background).sum(), background.sum())
            terms[f"foreground_{number}"] = (0.5, (losses * foreground).sum(), foreground.sum())
        else:
            terms[f"output_{number}"] = (1.0, (losses * counted).sum(), counted.sum())
    return terms


def is_deeplab_pytorch(state: dict) -> bool:
    """Whether a state dict has deeplab-pytorch's names."""
    return "layer1.conv1.conv.weight" in state or "base.layer1.conv1.conv.weight" in state


def rename_deeplab_pytorch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """deeplab-pytorch's weights under the names of `DeepLabV2` (of a design with `caffe`).

    state: that of deeplabv2_resnet101_msc-*.pth or of deeplabv1_resnet101-coco.pth. An example of a name:
    `base.layer3.block2.reduce.conv.weight` becomes `backbone.layer2.1.conv1.weight`. Their network sees BGR
    images, so that the channels of the first convolution are reversed. V1's classifier `fc` is left out; then
    the result has no names that begin with `aspp.`.
    """
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("base.")
        name = name.replace("aspp.c", "aspp.")
        name = name.replace("layer1.conv1.conv", "backbone.conv1")
        name = name.replace("layer1.conv1.bn", "backbone.bn1")
        match = re.fullmatch(r"layer([2-5])\.block(\d+)\.(\w+\.\w+)\.(\w+)", name)
        if match:
            stage, block, layer, field = match.groups()
            layer = TORCHVISION_LAYERS.get(layer, layer)
            name = f"backbone.layer{int(stage) - 1}.{int(block) - 1}.{layer}.{field}"
        if name == "backbone.conv1.weight":
            value = value.flip(1)
        if not name.startswith("fc."):
            renamed[name] = value
    return renamed
