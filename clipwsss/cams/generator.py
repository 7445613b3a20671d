"""The kinds of CAM generators and their files.

Another one is a file beside resnet.py with a MapGenerator and the three functions of a `Kind`, and one row of
GENERATORS; rules of assets/presets.json may then name it. Nothing else knows which one runs.
"""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..errors import InputError, input_errors
from ..files import load_weights_into, load_weights, read_network, save_network
from ..networks.resnet import RESNETS
from ..networks.vit import TRANSFORMERS
from . import resnet, weaktr
from .base import GeneratorSettings, MapGenerator

StateDict = Mapping[str, Tensor]


class Kind(NamedTuple):
    """How a kind of generator is made: its backbones' names and three functions.

    build(classes, settings) starts one; rebuild(config, weights, classes, settings) makes the network that a
    file's weights fit; published(stored) finds its weights under our names in a release's file, or None.
    """
    backbones: tuple[str, ...]
    build: Callable[[Sequence[str], GeneratorSettings], MapGenerator]
    rebuild: Callable[[dict, StateDict, Sequence[str], GeneratorSettings], MapGenerator]
    published: Callable[[Mapping], StateDict | None]


GENERATORS = {"resnet": Kind(RESNETS, resnet.build, resnet.rebuild, resnet.published),
              "weaktr": Kind(TRANSFORMERS, weaktr.build, weaktr.rebuild, weaktr.published)}
KIND_OF_BACKBONE = {backbone: name for name, kind in GENERATORS.items() for backbone in kind.backbones}


def build_generator(classes: Sequence[str], settings: GeneratorSettings) -> MapGenerator:
    """A generator of the kind that has this backbone; InputError on settings that do not fit."""
    return GENERATORS[KIND_OF_BACKBONE[settings.backbone]].build(classes, settings)


def save_generator(generator: MapGenerator, path: Path) -> None:
    """StateDict with what is needed to rebuild the network."""
    save_network(generator, "generator", generator.config, path)


def read_generator(path: Path) -> tuple[str, dict, StateDict]:
    """(kind, config, weights) of our own file or of a release's, whose config is empty; else InputError."""
    stored = load_weights(path)
    if "kind" in stored:
        config, weights = read_network(path, "generator")
        if config.get("backbone") not in KIND_OF_BACKBONE:
            raise InputError(f"{path}: a generator on {config.get('backbone')}, which is none of "
                             f"{', '.join(KIND_OF_BACKBONE)}")
        return KIND_OF_BACKBONE[config["backbone"]], config, weights
    for name, kind in GENERATORS.items():
        if weights := kind.published(stored):
            return name, {}, weights
    raise InputError(f"{path}: no weights of a generator ({', '.join(GENERATORS)})")


def load_generator(path: Path, classes: Sequence[str],
                   settings: GeneratorSettings = GeneratorSettings()) -> MapGenerator:
    """The generator of a file; `settings` serve files that do not say theirs, and training.

    InputError on other classes or weights.
    """
    name, config, weights = read_generator(path)
    if settings.generator not in (None, name):
        raise InputError(f"{path}: a {name} generator; --generator {name} goes with it")
    if config and list(config["classes"]) != list(classes):
        raise InputError(f"{path}: made for the classes {', '.join(config['classes'])}; this data has "
                         f"{', '.join(classes)}")
    with input_errors(f"{path}: "):
        generator = GENERATORS[name].rebuild(config, weights, classes, settings)
    load_weights_into(generator, weights, path, f"{generator.config['backbone']} generator of {len(classes)} classes")
    return generator
