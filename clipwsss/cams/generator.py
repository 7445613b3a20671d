"""The kinds of CAM generators and their files.

Another kind is a file beside resnet_generator.py with a MapGenerator and its functions, one row of
GENERATORS, and in presets.py its rows of TRAIN_CAM and TRAIN_PROMPT.
"""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..errors import InputError, input_errors
from ..files import load_weights, load_weights_into, read_network
from ..networks.resnet import RESNETS
from ..networks.vit import TRANSFORMERS
from .maps import MapGenerator
from .resnet_generator import build_resnet_generator, rename_irn_weights
from .weaktr import build_weaktr, find_weaktr_weights, rebuild_weaktr


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
