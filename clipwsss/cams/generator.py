"""The kinds of CAM generators and their files.

Another kind is a file beside resnet.py with a MapGenerator and three functions, and one row of GENERATORS.
"""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..errors import InputError, input_errors
from ..files import load_weights, load_weights_into, read_network, save_network
from ..networks.resnet import RESNETS
from ..networks.vit import TRANSFORMERS
from .maps import MapGenerator
from .resnet import build_resnet_generator, rebuild_resnet_generator, rename_irn_weights
from .weaktr import build_weaktr, find_weaktr_weights, rebuild_weaktr


class GeneratorKind(NamedTuple):
    """A kind of generator.

    backbones: the names of its backbones. options: the names of its own constructor arguments.
    build(classes, backbone, weights, **options) makes a generator that starts from `weights`.
    rebuild(config, state, classes, backbone, **options) makes the generator whose weights a file holds.
    find_weights(stored) gives the weights of a release's file under our names, or None for another file.
    """
    backbones: tuple[str, ...]
    options: tuple[str, ...]
    build: Callable[..., MapGenerator]
    rebuild: Callable[..., MapGenerator]
    find_weights: Callable[[Mapping], Mapping[str, Tensor] | None]


GENERATORS = {
    "resnet": GeneratorKind(RESNETS, ("output_stride", "freeze_stages", "frozen_bn"),
                            build_resnet_generator, rebuild_resnet_generator, rename_irn_weights),
    "weaktr": GeneratorKind(TRANSFORMERS, ("pooling", "reduction", "drop_path"),
                            build_weaktr, rebuild_weaktr, find_weaktr_weights),
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


def save_generator(generator: MapGenerator, path: Path) -> None:
    """Save the weights with the config that builds the generator again."""
    save_network(generator, "generator", generator.config, path)


def read_generator(path: Path) -> tuple[str, dict, Mapping[str, Tensor]]:
    """(kind, config, weights) of our own file or of a release's, whose config is empty.

    InputError: the file holds no generator.
    """
    stored = load_weights(path)
    if "kind" in stored:
        config, state = read_network(path, "generator")
        backbone = config.get("backbone")
        if backbone not in KIND_OF_BACKBONE:
            raise InputError(f"{path}: a generator on {backbone}; valid: {', '.join(KIND_OF_BACKBONE)}")
        return KIND_OF_BACKBONE[backbone], config, state
    for name, kind in GENERATORS.items():
        state = kind.find_weights(stored)
        if state:
            return name, {}, state
    raise InputError(f"{path}: not the weights of a generator ({', '.join(GENERATORS)})")


def load_generator(path: Path, classes: Sequence[str], expected_kind: str | None = None,
                   **options: object) -> MapGenerator:
    """The generator of a file.

    expected_kind: the kind that the file must hold; None accepts every kind. options: arguments of the kind's
    `rebuild`; they hold for training and where the file has no config. InputError: a file of another kind, of
    other classes, or whose weights do not fit.
    """
    kind, config, state = read_generator(path)
    if expected_kind not in (None, kind):
        raise InputError(f"{path}: a {kind} generator; use --generator {kind} with it")
    if config and list(config["classes"]) != list(classes):
        raise InputError(f"{path}: made for the classes {', '.join(config['classes'])}; this data has "
                         f"{', '.join(classes)}")
    with input_errors(f"{path}: "):
        generator = GENERATORS[kind].rebuild(config, state, classes, **options)
    what = f"{generator.config['backbone']} generator of {len(classes)} classes"
    load_weights_into(generator, state, path, what)
    return generator
