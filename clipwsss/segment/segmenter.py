"""The final segmenter: a network with its classes and colours, its start, its file."""
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import input_errors
from ..files import fill, load_weights, read_network, save_network
from ..networks import deeplab, mask2former

NETWORKS = (*deeplab.NETWORKS, "mask2former")


class Segmenter(NamedTuple):
    """A network, the design it was built from, its classes and their palette uint8 [256,3].

    Label 0 is the background, label i the i-th class.
    """
    network: nn.Module
    design: dict
    classes: Sequence[str]
    palette: NDArray

    def save(self, path: Path | str) -> None:
        """Write the weights with the arguments of `build_segmenter`."""
        palette = torch.from_numpy(np.asarray(self.palette, np.uint8).copy())
        config = {"design": self.design, "classes": list(self.classes), "palette": palette}
        save_network(self.network, "segmenter", config, path)


def build_segmenter(design: dict, classes: Sequence[str], palette: NDArray | torch.Tensor,
                    weights: str | Path = "none") -> Segmenter:
    """A segmenter of a design: the fields of `deeplab.Design`, of which mask2former takes `network` alone.

    weights: imagenet, none, a file of torchvision, of a generator or of deeplab-pytorch; for mask2former a
    `transformers` model's name or folder, or none. InputError names weights that do not fit.
    """
    n_labels = len(classes) + 1
    if design["network"] == "mask2former":
        network = mask2former.build(n_labels, str(weights), design.get("model"))
        design = {"network": "mask2former", "model": network.model.config.to_dict()}
        return Segmenter(network, design, classes, np.asarray(palette))
    published = {} if str(weights) in ("none", "imagenet") else load_weights(weights)
    if not deeplab.is_deeplab_pytorch(published):
        published = {}
    design = {**design, "caffe": bool(published) or design.get("caffe", False)}
    with input_errors():
        network = deeplab.build(deeplab.Design(**design), n_labels, "none" if published else weights)
        if published:
            head = deeplab.load_deeplab_pytorch(network, published, str(weights))
            print(f"{weights}: deeplab-pytorch's; {'all layers loaded' if head else 'the ASPP starts anew'}")
    return Segmenter(network, design, classes, np.asarray(palette))


def load_segmenter(path: Path | str) -> Segmenter:
    """The segmenter of a file, its network in eval mode; InputError on other files."""
    config, state = read_network(path, "segmenter")
    segmenter = build_segmenter(**config)
    fill(segmenter.network.eval(), state, path)
    return segmenter
