"""The final segmenter: its file, its start, and its multi-scale predictions on whole images."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..networks import deeplab, resnet
from ..refine.crf import dense_crf, unary_from_probabilities
from ..files import fill, load_weights, read_network, save_network
from ..errors import InputError

NETWORKS = (*deeplab.NETWORKS, "mask2former")
# deeplab-pytorch's for VOC 2012: (sxy, weight), (sxy, srgb, weight)
CRF_KERNELS = ((1, 3), (67, 3, 4))
LIKELY = 1e-3  # probability that a label needs somewhere in an image to take part in its CRF


def build_segmenter(config: dict, weights: str | Path = "none", frozen_bn: bool = True,
                    multi_scale: bool | None = None) -> tuple[nn.Module, dict]:
    """A network for config = {network, backbone, output_stride, rates, classes}, and the config completed.

    weights: imagenet, none, a file of torchvision, of a generator or of deeplab-pytorch; for mask2former a
    `transformers` model's name or folder, or none. InputError names weights that do not fit.
    """
    n_labels = len(config["classes"]) + 1
    if config["network"] == "mask2former":
        from ..networks.mask2former import build
        return build(config, n_labels, str(weights))
    stored = {} if str(weights) in ("none", "imagenet") else load_weights(weights)
    own = deeplab.is_deeplab_pytorch(stored)
    config = {**config, "caffe": own or config.get("caffe", False)}
    try:
        network = deeplab.build(config["network"], config["backbone"], n_labels, config["output_stride"],
                                "none" if own else weights, frozen_bn, config["rates"], multi_scale,
                                config["caffe"])
        if own:
            head = deeplab.load_deeplab_pytorch(network, stored, str(weights))
            print(f"{weights}: deeplab-pytorch's; {'all layers loaded' if head else 'the ASPP starts anew'}")
    except ValueError as error:
        raise InputError(str(error)) from error
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


@torch.inference_mode()
def probabilities(network: nn.Module, images: Tensor, scales: Sequence[float] = (1.0,),
                  flip: bool = False) -> Tensor:
    """Mean class probabilities [B,n_labels,H,W] of images [B,3,H,W] over scales and mirror images.

    The largest scale comes first, and the others, added to the mean one by one, fit into the memory it took.
    """
    size = images.shape[-2:]
    total, passes = None, len(scales) * (2 if flip else 1)
    for scale in sorted(scales, reverse=True):
        scaled = images
        if scale != 1:
            target = [max(1, round(side * scale)) for side in size]
            scaled = F.interpolate(images, target, mode="bilinear", align_corners=False)
        for mirrored in (False, True)[:2 if flip else 1]:
            logits = network(scaled.flip(-1) if mirrored else scaled).float()
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            found = logits.softmax(1).div_(passes)
            found = found.flip(-1) if mirrored else found
            total = found if total is None else total.add_(found)
    return total


def decide(image: NDArray, found: NDArray, crf: bool = False) -> NDArray:
    """Label map uint8 [H,W] of an image uint8 [H,W,3] and its probabilities float32 [n_labels,H,W].

    With `crf` the dense CRF decides, over the labels that reach LIKELY somewhere: most of its time is saved.
    """
    if not crf:
        return found.argmax(0).astype(np.uint8)
    labels = np.flatnonzero(found.reshape(len(found), -1).max(1) >= LIKELY)
    if len(labels) == 1:
        return np.full(found.shape[1:], labels[0], np.uint8)
    kept = found[labels] / found[labels].sum(0)
    refined = dense_crf(image, unary_from_probabilities(kept), 10, *CRF_KERNELS)
    return labels[refined.argmax(0)].astype(np.uint8)
