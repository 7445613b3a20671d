"""The classic CAM generator: a ResNet and a bias-free 1x1 classifier (POLE sec. 3.1, CLIMS, IRN)."""
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..errors import input_errors
from ..networks import resnet
from .base import GeneratorSettings, MapGenerator


class ResNetGenerator(MapGenerator):
    """Raw class maps W^T Z [B,K,h,w] of images [B,3,H,W] in [0,1].

    Their mean over positions is the classifier's logit (average pooling commutes with the 1x1 convolution).
    `backbone` maps images to features [B,C,h,w] and has `channels`; `frozen` are its modules that are not
    trained and whose batch norm stays as it is.
    """
    map_multiple = 16  # IRN's make_cam, whatever the stride

    def __init__(self, backbone: nn.Module, config: dict, frozen: tuple[nn.Module, ...] = ()):
        super().__init__()
        self.backbone, self.config = backbone, config
        self.classifier = nn.Conv2d(backbone.channels[-1], len(config["classes"]), 1, bias=False)
        self.frozen = [module.requires_grad_(False) for module in frozen]

    def forward(self, images: Tensor) -> Tensor:
        """Raw maps [B,K,h,w], float32 under autocast too: sigmoids and means of bfloat16 maps saturate."""
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


def build(classes: Sequence[str], settings: GeneratorSettings) -> ResNetGenerator:
    """A generator with these settings; InputError on a stride or weights that do not fit."""
    with input_errors():
        body = resnet.build(settings.backbone, settings.output_stride, settings.weights,
                            frozen_bn=settings.frozen_bn)
    stages = [(body.conv1, body.bn1), (body.layer1,), (body.layer2,), (body.layer3,), (body.layer4,)]
    config = {"backbone": settings.backbone, "output_stride": settings.output_stride,
              "classes": list(classes)}
    return ResNetGenerator(body, config, sum(stages[:settings.freeze_stages], ()))


def rebuild(config: dict, state: Mapping[str, Tensor], classes: Sequence[str],
            settings: GeneratorSettings) -> ResNetGenerator:
    """The network of a file; `settings` say what its config does not."""
    stored = {name: config[name] for name in ("backbone", "output_stride") if name in config}
    return build(classes, settings._replace(weights="none", **stored))


def published(stored: Mapping) -> dict[str, Tensor] | None:
    """Our names for the weights of IRN's or CLIMS' `res50_*.pth`, which give the same layers several times by
    stages and groups; None for another file."""
    stored = stored.get("state_dict", stored)
    return {name.replace("resnet50.", "backbone.", 1): value for name, value in stored.items()
            if name.startswith(("resnet50.", "classifier.")) and ".fc." not in name} or None
