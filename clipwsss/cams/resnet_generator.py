"""The classic CAM generator: a ResNet and a 1x1 classifier without bias (POLE sec. 3.1, CLIMS, IRN)."""
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ..errors import input_errors
from ..files import load_backbone
from ..networks.resnet import RESNET_WEIGHTS, ResNet
from .maps import MapGenerator


class ResNetGenerator(MapGenerator):
    """Raw class maps W^T Z [B,K,h,w] of images [B,3,H,W] in [0,1].

    The mean of a map over its positions is the classifier's logit, because average pooling commutes with the
    1x1 convolution.
    """
    map_multiple = 16  # that of IRN's make_cam at every output stride

    def __init__(self, backbone: ResNet, config: dict):
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.classifier = nn.Conv2d(backbone.channels[-1], len(config["classes"]), 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Raw maps [B,K,h,w], in float32 under autocast too: sigmoids and means of bfloat16 maps saturate."""
        return self.classifier(self.backbone(images)[-1]).float()

    def classify(self, images: Tensor) -> dict[str, Tensor]:
        return {"maps": self(images).mean(dim=(2, 3))}

    def parameter_groups(self, lr: float, head_ratio: float = 10.0) -> list[dict]:
        body = [p for p in self.backbone.parameters() if p.requires_grad]
        return [{"params": body, "lr": lr}, {"params": [self.classifier.weight], "lr": lr * head_ratio}]


def build_resnet_generator(classes: Sequence[str], backbone: str = "resnet50",
                           weights: str | Path = "imagenet", output_stride: int = 16,
                           freeze_stages: int = 1, frozen_bn: bool = False) -> ResNetGenerator:
    """A generator on one of RESNETS.

    weights: `imagenet`, `none` or a file (see `load_backbone`). output_stride: image size over map size.
    freeze_stages: of how many of stem, layer1, layer2, layer3 and layer4, in this order, the weights are
    fixed. frozen_bn: batch norm keeps its statistics in training, in all stages (the classifier of IRN and
    CLIMS). Without it those of a fixed stage follow the batch too, as in CLIMS' generator.
    InputError: an output stride that the backbone does not have, or weights that do not fit.
    """
    with input_errors():
        body = ResNet(backbone, output_stride, frozen_bn=frozen_bn)
    if str(weights) != "none":
        load_backbone(body, weights, backbone, RESNET_WEIGHTS)
    stem = nn.ModuleList([body.conv1, body.bn1])
    for stage in (stem, body.layer1, body.layer2, body.layer3, body.layer4)[:freeze_stages]:
        stage.requires_grad_(False)
    config = {"backbone": backbone, "output_stride": output_stride, "classes": list(classes)}
    return ResNetGenerator(body, config)


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
