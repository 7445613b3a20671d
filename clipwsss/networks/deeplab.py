"""DeepLabV2 and DeepLabV3+ on the ResNets of this package (needs `resnet` beside it and nothing else).

Chen et al., "DeepLab", PAMI 2018 (V2), "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018 (V3+).
Networks have n_labels = K + 1 outputs, 0 the background. What the papers leave open follows deeplab-pytorch.
"""
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import Conv2dNormActivation

from . import resnet

IGNORE = 255
DEEPLABS = ("deeplabv2", "deeplabv3plus")
# deeplab-pytorch's names of layers in a bottleneck, and torchvision's
LAYERS = {"reduce.conv": "conv1", "reduce.bn": "bn1", "conv3x3.conv": "conv2", "conv3x3.bn": "bn2",
          "increase.conv": "conv3", "increase.bn": "bn3", "shortcut.conv": "downsample.0",
          "shortcut.bn": "downsample.1"}


class Design(NamedTuple):
    """What a network is built from, beside labels and weights: one of DEEPLABS on one of resnet.RESNETS.

    rates: of the ASPP (None: deeplabv2 6 12 18 24; deeplabv3plus 6 12 18, doubled at stride 8). multi_scale:
    the loss (None: deeplabv2 only). frozen_bn: the backbone's batch norm learns nothing. caffe: the layout of
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
    """What both have: a backbone and the training loss.

    multi_scale: train on the logits at scales 1, 0.75 and 0.5 and on their maximum, as the published V2.
    """

    def __init__(self, backbone: nn.Module, multi_scale: bool) -> None:
        super().__init__()
        self.backbone, self.multi_scale = backbone, multi_scale

    def training_logits(self, images: Tensor) -> list[Tensor]:
        """Logits [B,n_labels,h,w] that the loss is over, the last of the first's size."""
        return multi_scale_logits(self, images) if self.multi_scale else [self(images)]

    def loss_terms(self, images: Tensor, masks: Tensor, balanced: bool = False) -> dict[str, tuple]:
        """`segmentation_terms` of images [B,3,H,W] in [0,1] and masks [B,H,W] (255 ignored)."""
        return segmentation_terms(self.training_logits(images), masks, balanced)

    def parameter_groups(self, lr: float, weight_decay: float, head_ratio: float = 10.0) -> list[dict]:
        """The backbone at 1x, everything new at 10x."""
        body = [item for item in self.backbone.parameters() if item.requires_grad]
        new = [item for name, item in self.named_parameters() if not name.startswith("backbone.")]
        return [{"params": body, "lr": lr, "weight_decay": weight_decay},
                {"params": new, "lr": head_ratio * lr, "weight_decay": weight_decay}]


class DeepLabV2(DeepLab):
    """A dilated ResNet and the sum of 3x3 convolutions at several rates, each with its bias.

    images [B,3,H,W] in [0,1] -> logits [B,n_labels,h,w] at the backbone's stride (8 as published).
    """

    def __init__(self, backbone: nn.Module, n_labels: int, rates: Sequence[int] = (6, 12, 18, 24),
                 multi_scale: bool = True) -> None:
        super().__init__(backbone, multi_scale)
        self.aspp = nn.ModuleList(nn.Conv2d(backbone.channels[-1], n_labels, 3, padding=rate, dilation=rate)
                                  for rate in rates)
        for branch in self.aspp:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        return sum(branch(features) for branch in self.aspp)

    def parameter_groups(self, lr: float, weight_decay: float, head_ratio: float = 10.0) -> list[dict]:
        """The backbone at 1x, the ASPP's weights at 10x, its biases at 20x without weight decay."""
        body, head = super().parameter_groups(lr, weight_decay, head_ratio)
        weights, biases = [item.weight for item in self.aspp], [item.bias for item in self.aspp]
        return [body, {**head, "params": weights},
                {"params": biases, "lr": 2 * head_ratio * lr, "weight_decay": 0.0}]


class DeepLabV3Plus(DeepLab):
    """A dilated ResNet, ASPP with image pooling, and the decoder that joins it with the first stage's maps.

    images [B,3,H,W] in [0,1] -> logits [B,n_labels,H,W]; plain convolutions, as in deeplab-pytorch.
    """

    def __init__(self, backbone: nn.Module, n_labels: int, rates: Sequence[int] = (6, 12, 18),
                 multi_scale: bool = False) -> None:
        super().__init__(backbone, multi_scale)
        width = min(256, backbone.channels[-1] // 2)
        low = width * 48 // 256  # 48 of 256 as published; in proportion for a narrow backbone
        self.aspp = ASPP(backbone.channels[-1], list(rates), width)
        self.reduce = Conv2dNormActivation(backbone.channels[1], low, 1)
        self.decoder = nn.Sequential(Conv2dNormActivation(width + low, width),
                                     Conv2dNormActivation(width, width), nn.Conv2d(width, n_labels, 1))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.backbone.stages(images)
        low = self.reduce(maps[1])
        high = F.interpolate(self.aspp(maps[-1]), low.shape[-2:], mode="bilinear", align_corners=False)
        logits = self.decoder(torch.cat([high, low], 1))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


def build(design: Design, n_labels: int, weights: str | Path = "none") -> DeepLab:
    """The network of a design; `weights` are the backbone's, as of `resnet.build`.

    ValueError lists the valid names, or says which weights do not fit.
    """
    if design.network not in DEEPLABS:
        raise ValueError(f"unknown network '{design.network}'; valid: {', '.join(DEEPLABS)}")
    body = resnet.build(design.backbone, design.output_stride, weights, design.frozen_bn, dilate=True,
                        caffe=design.caffe)
    for module in body.batch_norms() if design.frozen_bn else ():
        module.requires_grad_(False)
    if design.network == "deeplabv2":
        return DeepLabV2(body, n_labels, design.rates or (6, 12, 18, 24), design.multi_scale is not False)
    rates = design.rates or ((12, 24, 36) if design.output_stride == 8 else (6, 12, 18))
    return DeepLabV3Plus(body, n_labels, rates, bool(design.multi_scale))


def multi_scale_logits(network: nn.Module, images: Tensor,
                       scales: Sequence[float] = (1.0, 0.75, 0.5)) -> list[Tensor]:
    """Logits of copies of the images at each of the scales, and the maximum of all at the first's size.

    The published V2 trains on every item of this list (each with its own loss) and tests with the last.
    """
    least = 1 / min(images.shape[-2:])  # leaves a pixel of the shorter side
    outputs = [network(images if scale == 1 else F.interpolate(
        images, scale_factor=max(scale, least), mode="bilinear", align_corners=False)) for scale in scales]
    size = outputs[0].shape[-2:]
    resized = [F.interpolate(item, size, mode="bilinear", align_corners=False) for item in outputs[1:]]
    return [*outputs, torch.stack([outputs[0], *resized]).amax(0)]


def segmentation_terms(outputs: Sequence[Tensor], masks: Tensor, balanced: bool = False) -> dict[str, tuple]:
    """Cross entropy of every output with the masks as {name: (weight, total over pixels, number of pixels)}.

    outputs: logits [B,n_labels,h,w] of any sizes; masks [B,H,W] (255 ignored) are resized to each of them by
    nearest pixel centres. The loss is the sum over the terms of weight * total / number. balanced: the mean
    over background pixels and that over foreground pixels count half each.
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
    return any(name.removeprefix("base.") == "layer1.conv1.conv.weight" for name in state)


def load_deeplab_pytorch(network: DeepLabV2, state: dict[str, Tensor], source: str) -> bool:
    """Load deeplab-pytorch's deeplabv2_resnet101_msc-*.pth or deeplabv1_resnet101-coco.pth; had it an ASPP?

    Theirs sees BGR: the first convolution's channels are turned round. V1's `fc` is left out, the ASPP then
    keeps its start. ValueError names `source` and what does not fit the network (of the caffe layout).
    """
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("base.").replace("aspp.c", "aspp.")
        name = name.replace("layer1.conv1.conv", "backbone.conv1").replace("layer1.conv1.bn", "backbone.bn1")
        if layer := re.fullmatch(r"layer([2-5])\.block(\d+)\.(\w+\.\w+)\.(\w+)", name):
            stage, block, part, field = layer.groups()
            name = f"backbone.layer{int(stage) - 1}.{int(block) - 1}.{LAYERS.get(part, part)}.{field}"
        renamed[name] = value.flip(1) if name == "backbone.conv1.weight" else value
    with_head = any(name.startswith("aspp.") for name in renamed)
    start = {} if with_head else {f"aspp.{name}": item for name, item in network.aspp.state_dict().items()}
    resnet.load_state(network, {**start, **renamed}, source)
    return with_head
