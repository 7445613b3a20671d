"""The final segmenter: its start and its file."""
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import input_errors
from ..files import fill, load_weights, read_network, save_network
from ..networks import deeplab, mask2former

NETWORKS = (*deeplab.NETWORKS, "mask2former")


def build_segmenter(config: dict, weights: str | Path = "none", frozen_bn: bool = True,
                    multi_scale: bool | None = None) -> tuple[nn.Module, dict]:
    """A network for config = {network, backbone, output_stride, rates, classes}, and the config completed.

    weights: imagenet, none, a file of torchvision, of a generator or of deeplab-pytorch; for mask2former a
    `transformers` model's name or folder, or none. InputError names weights that do not fit.
    """
    n_labels = len(config["classes"]) + 1
    if config["network"] == "mask2former":
        return mask2former.build(config, n_labels, str(weights))
    stored = {} if str(weights) in ("none", "imagenet") else load_weights(weights)
    own = deeplab.is_deeplab_pytorch(stored)
    config = {**config, "caffe": own or config.get("caffe", False)}
    layout = {name: config[name] for name in ("network", "backbone", "output_stride", "rates", "caffe")}
    with input_errors():
        network = deeplab.build(deeplab.Settings(**layout, frozen_bn=frozen_bn, multi_scale=multi_scale),
                                n_labels, "none" if own else weights)
        if own:
            head = deeplab.load_deeplab_pytorch(network, stored, str(weights))
            print(f"{weights}: deeplab-pytorch's; {'all layers loaded' if head else 'the ASPP starts anew'}")
    return network, config


def save_segmenter(network: nn.Module, config: dict, palette: NDArray, path: Path | str) -> None:
    """Weights with all that is needed to rebuild the network and to write its palette PNGs."""
    palette = torch.from_numpy(np.asarray(palette, np.uint8).copy())
    save_network(network, "segmenter", {**config, "palette": palette}, path)


def load_segmenter(path: Path | str) -> tuple[nn.Module, dict, NDArray]:
    """(network in eval mode, config, palette uint8 [256,3]) of a segmenter's file; InputError on others."""
    config, state = read_network(path, "segmenter")
    palette = config.pop("palette").numpy()
    network, config = build_segmenter(config)
    fill(network, state, path)
    return network.eval(), config, palette
