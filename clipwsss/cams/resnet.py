"""The classic CAM generator: a ResNet and a 1x1 classifier without bias (POLE sec. 3.1, CLIMS, IRN)."""
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ..errors import input_errors
from ..networks import resnet
from ..files import load_backbone
from .maps import MapGenerator


class ResNetGenerator(MapGenerator):
    """Raw class maps W^T Z [B,K,h,w] of images [B,3,H,W] in [0,1].

    The mean of a map over its positions is the classifier's logit, because average pooling commutes with the
    1x1 convolution. `backbone` maps images to features [B,C,h,w] and has `channels`. `frozen` are the modules
    of the backbone that are not trained and whose batch norm keeps its statistics.
    """
    map_multiple = 16  # that of IRN's make_cam at every output stride

    def __init__(self, backbone: nn.Module, config: dict, frozen: Sequence[nn.Module] = ()):
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.classifier = nn.Conv2d(backbone.channels[-1], len(config["classes"]), 1, bias=False)
        self.frozen = list(frozen)
        for module in frozen:
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Raw maps [B,K,h,w], in float32 under autocast too: sigmoids and means of bfloat16 maps saturate."""
        return self.classifier(self.backbone(images)).float()

    def classify(self, images: Tensor) -> dict[str, Tensor]:
        return {"maps": self(images).mean(dim=(2, 3))}

    def train(self, mode: bool = True) -> "ResNetGenerator":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def parameter_groups(self, lr: float, head_ratio: float = 10.0) -> list[dict]:
        body = [p for p in self.backbone.parameters() if p.requires_grad]
        return [{"params": body, "lr": lr}, {"params": [self.classifier.weight], "lr": lr * head_ratio}]


def build_resnet_generator(classes: Sequence[str], backbone: str = "resnet50",
                           weights: str | Path = "imagenet", output_stride: int = 16,
                           freeze_stages: int = 1, frozen_bn: bool = False) -> ResNetGenerator:
    """A generator on one of resnet.RESNETS.

    weights: `imagenet`, `none` or a file (see `load_backbone`). output_stride: image size over map size.
    freeze_stages: how many of stem, layer1, layer2, layer3 and layer4 are not trained, in this order.
    frozen_bn: batch norm keeps its statistics in training (IRN's classifier; CLIMS' generator does not).
    InputError: an output stride that the backbone does not have, or weights that do not fit.
    """
    with input_errors():
        body = resnet.build(backbone, output_stride, frozen_bn)
    if str(weights) != "none":
        load_backbone(body, weights, backbone, resnet.RESNET_WEIGHTS)
    stages = [[body.conv1, body.bn1], [body.layer1], [body.layer2], [body.layer3], [body.layer4]]
    frozen = [module for stage in stages[:freeze_stages] for module in stage]
    config = {"backbone": backbone, "output_stride": output_stride, "classes": list(classes)}
    return ResNetGenerator(body, config, frozen)


def rebuild_resnet_generator(config: dict, state: Mapping[str, Tensor], classes: Sequence[str],
                             backbone: str = "resnet50", output_stride: int = 16, freeze_stages: int = 1,
                             frozen_bn: bool = False) -> ResNetGenerator:
    """The generator of a file, without its weights; the arguments fill in what its config does not say."""
    backbone = config.get("backbone", backbone)
    output_stride = config.get("output_stride", output_stride)
    return build_resnet_generator(classes, backbone, "none", output_stride, freeze_stages, frozen_bn)


def rename_irn_weights(stored: Mapping) -> dict[str, Tensor] | None:
    """The weights of IRN's or CLIMS' `res50_*.pth` under our names; None for another file.

    Their files hold each layer several times; `resnet50.layer1...` becomes `backbone.layer1...`, and the
    copies named after stages and groups are left out.
    """
    stored = stored.get("state_dict", stored)
    renamed = {}
    for name, value in stored.items():
        if name.startswith(("resnet50.", "classifier.")) and ".fc." not in name:
            renamed[name.replace("resnet50.", "backbone.", 1)] = value
    return renamed or None
