"""The class activation map generator: a backbone and a bias-free 1x1 classifier."""
from pathlib import Path

import torch
from torch import nn

from ..networks import resnet
from ..files import fill, load_weights, read_network, save_network
from ..errors import InputError, input_errors


class Generator(nn.Module):
    """Maps images [B,3,H,W] in [0,1] to raw class maps W^T Z [B,K,h,w] (POLE sec. 3.1).

    Their mean over positions is the classifier's logit (average pooling commutes with the 1x1 convolution).
    `backbone` maps images to features [B,C,h,w] and has `channels`; `frozen` are its modules that are not
    trained and whose batch norm stays as it is; `config` is written with the weights, to rebuild it by.
    """

    def __init__(self, backbone: nn.Module, n_classes: int, frozen: tuple[nn.Module, ...] = (),
                 config: dict | None = None):
        super().__init__()
        self.backbone, self.config = backbone, config
        self.classifier = nn.Conv2d(backbone.channels[-1], n_classes, 1, bias=False)
        self.frozen = [module.requires_grad_(False) for module in frozen]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Raw maps [B,K,h,w], float32 under autocast too: sigmoids and means of bfloat16 maps saturate."""
        return self.classifier(self.backbone(images)).float()

    def train(self, mode: bool = True) -> "Generator":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def parameter_groups(self, lr: float, head_ratio: float = 10.0) -> list[dict]:
        """The backbone at `lr`, the new classifier at `head_ratio` times it (IRN, CLIMS)."""
        body = [p for p in self.backbone.parameters() if p.requires_grad]
        return [{"params": body, "lr": lr}, {"params": [self.classifier.weight], "lr": lr * head_ratio}]


def build_generator(backbone: str, classes: list[str], output_stride: int = 16, weights: str = "imagenet",
                    freeze_stages: int = 1, frozen_bn: bool = False) -> Generator:
    """A ResNet generator; the first `freeze_stages` of stem, layer1, ... are frozen with their batch norm.

    `frozen_bn` keeps all batch norm statistics (IRN's classifier; CLIMS' generator trains with the batch's).
    InputError on a stride or weights that do not fit.
    """
    with input_errors():
        body = resnet.build(backbone, output_stride, weights, frozen_bn=frozen_bn)
    stages = [(body.conv1, body.bn1), (body.layer1,), (body.layer2,), (body.layer3,), (body.layer4,)]
    config = {"backbone": backbone, "output_stride": output_stride, "classes": list(classes)}
    return Generator(body, len(classes), sum(stages[:freeze_stages], ()), config)


def save_generator(generator: Generator, path: Path) -> None:
    """Weights with what is needed to rebuild the network."""
    save_network(generator, "generator", generator.config, path)


def load_generator(path: Path, classes: list[str], backbone: str = "resnet50", output_stride: int = 16,
                   freeze_stages: int = 1, frozen_bn: bool = False) -> Generator:
    """A generator from our own file or from IRN's and CLIMS' `res50_*.pth`.

    `backbone` and `output_stride` serve files that do not say theirs. InputError on other classes or weights.
    """
    stored = load_weights(path)
    if "kind" in stored:
        config, state = read_network(path, "generator")
        backbone, output_stride = config["backbone"], config["output_stride"]
        if list(config["classes"]) != list(classes):
            raise InputError(f"{path}: made for the classes {', '.join(config['classes'])}; this data has "
                             f"{', '.join(classes)}")
    else:  # the references name the same layers several times, by stages and groups
        stored = stored.get("state_dict", stored)
        state = {name.replace("resnet50.", "backbone.", 1): value for name, value in stored.items()
                 if name.startswith(("resnet50.", "classifier.")) and ".fc." not in name}
    generator = build_generator(backbone, classes, output_stride, "none", freeze_stages, frozen_bn)
    fill(generator, state, path, f"{backbone} generator of {len(classes)} classes")
    return generator
