"""CAM generators: the classic one, the kinds that there are, and their files.

Another kind is a file such as weaktr.py with a MapGenerator and its functions, one row of GENERATORS, and in
presets/ its rows of TRAIN_CAM and TRAIN_PROMPT.
"""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import InputError, input_errors
from ..files import load_backbone, load_weights, load_weights_into, read_network
from ..networks.resnet import RESNET_WEIGHTS, RESNETS, ResNet
from ..networks.vit import TRANSFORMERS
from .maps import MapGenerator
from .weaktr import build_weaktr, find_weaktr_weights, rebuild_weaktr


class ResNetGenerator(MapGenerator):
    """The classic generator: a ResNet and a 1x1 classifier without bias (POLE sec. 3.1, CLIMS, IRN).

    It gives raw class maps W^T Z [B,K,h,w] of images [B,3,H,W] in [0,1]. The mean of a map over its positions
    is the classifier's logit, because average pooling commutes with the 1x1 convolution.
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


class GeneratorKind(NamedTuple):
    """A kind of generator.

    backbones: the names of its backbones. options: the names of its own constructor arguments.
    build(classes, backbone, weights, **options) makes a generator that starts from `weights`.
    find_weights(stored) gives the weights of a release's file under our names, or None for another file.
    rebuild(state, classes, backbone, category_ids=(), **options) makes a generator whose sizes are those of a
    file's weights. It is None for a kind whose sizes follow from the backbone.
    """
    backbones: tuple[str, ...]
    options: tuple[str, ...]
    build: Callable[..., MapGenerator]
    find_weights: Callable[[Mapping], Mapping[str, Tensor] | None]
    rebuild: Callable[..., MapGenerator] | None = None


GENERATORS = {
    "resnet": GeneratorKind(RESNETS, ("output_stride", "freeze_stages", "frozen_bn"),
                            build_resnet_generator, rename_irn_weights),
    "weaktr": GeneratorKind(TRANSFORMERS, ("pooling", "reduction", "drop_path"),
                            build_weaktr, find_weaktr_weights, rebuild_weaktr),
}
KIND_OF_BACKBONE = {backbone: name for name, kind in GENERATORS.items() for backbone in kind.backbones}


def build_generator(classes: Sequence[str], backbone: str = "resnet50", weights: str | Path = "imagenet",
                    **options: object) -> MapGenerator:
    """A generator of the kind that has this backbone.

    options: arguments of the kind's `build`, such as `output_stride` or `pooling`. InputError: arguments or
    weights that do not fit.
    """
    kind = GENERATORS[KIND_OF_BACKBONE[backbone]]
    return kind.build(classes, backbone, weights, **options)


def load_generator(path: Path, classes: Sequence[str], expected_kind: str | None = None,
                   category_ids: Sequence[int] = (), **options: object) -> MapGenerator:
    """The generator of one of our own files or of a release's file.

    Our own files are written by `save_network` with the kind "generator" and the generator's `config`.
    expected_kind: the kind that the file must hold; None accepts every kind. category_ids: COCO's numbers of
    the classes, for a release's file that counts by them. options: `backbone` and the options of the kind; a
    value that the file itself gives replaces the option. InputError: the file holds no
    generator, or one of another kind or of other classes, or its weights do not fit.
    """
    stored = load_weights(path)
    if "kind" in stored:
        config, state = read_network(path, "generator")
        backbone = config.get("backbone")
        if backbone not in KIND_OF_BACKBONE:
            raise InputError(f"{path}: unknown backbone {backbone}; valid: {', '.join(KIND_OF_BACKBONE)}")
        kind = KIND_OF_BACKBONE[backbone]
        options.pop("reduction", None)  # it belongs to files that do not state their pooling
    else:
        config = {}
        found = {name: entry.find_weights(stored) for name, entry in GENERATORS.items()}
        kinds = [name for name, weights in found.items() if weights]
        if not kinds:
            raise InputError(f"{path}: not the weights of a generator ({', '.join(GENERATORS)})")
        kind = kinds[0]
        state = found[kind]
    if expected_kind not in (None, kind):
        raise InputError(f"{path}: a {kind} generator; use --generator {kind} with it")
    if config and list(config["classes"]) != list(classes):
        raise InputError(f"{path}: made for the classes {', '.join(config['classes'])}; this data has "
                         f"{', '.join(classes)}")
    for name in ("backbone", *GENERATORS[kind].options):
        if name in config:
            options[name] = config[name]
    with input_errors(f"{path}: "):
        if GENERATORS[kind].rebuild:
            numbers = config.get("category_ids", category_ids)
            generator = GENERATORS[kind].rebuild(state, classes, category_ids=numbers, **options)
        else:
            generator = GENERATORS[kind].build(classes, weights="none", **options)
    what = f"{generator.config['backbone']} generator of {len(classes)} classes"
    load_weights_into(generator, state, path, what)
    return generator
