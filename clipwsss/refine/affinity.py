"""Networks that learn the affinity of neighbouring pixels from CAMs, IRN's and PSA's, and their files."""
from pathlib import Path

from torch import nn

from ..errors import InputError
from ..files import load_weights_into, load_weights, read_network, save_network
from ..networks import resnet
from ..weights import load_backbone
from .irn import STRIDE, IRNet
from .psa import AffinityNet

AFFINITY_NETWORKS = {"irn": IRNet, "psa": AffinityNet}


def build_affinity(kind: str, backbone: str = "resnet50",
                   weights: str | Path = "imagenet") -> tuple[nn.Module, str]:
    """An untrained network of AFFINITY_NETWORKS, and its backbone's name.

    IRN has output stride 16 by strides alone, as released; PSA 8 with dilation. weights: imagenet, none, a
    torchvision state dict, or a generator's file (train_cam, train_prompt), which names its own backbone.
    InputError on unfit weights.
    """
    if str(weights) not in ("imagenet", "none"):
        backbone = load_weights(weights).get("config", {}).get("backbone", backbone)
    if backbone not in resnet.RESNETS:
        raise InputError(f"--weights {weights}: on {backbone}, and this network is a ResNet; "
                         "give imagenet, none or another file")
    highest = 16 if kind == "irn" else 8
    stride = next(item for item in resnet.RESNET_SPECS[backbone].output_strides if item <= highest)
    body = resnet.build(backbone, stride, frozen_bn=True, dilate=kind == "psa")
    load_backbone(body, weights, backbone, resnet.RESNET_WEIGHTS)
    return AFFINITY_NETWORKS[kind](body), backbone


def least_crop(kind: str, backbone: str, radius: int) -> int:
    """Side in pixels of the smallest crop with pairs of pixels within `radius` on the network's grid."""
    stride = STRIDE if kind == "irn" else resnet.RESNET_SPECS[backbone].output_strides[-1]
    return stride * (2 * radius - 1)


def save_affinity(network: nn.Module, path: Path, kind: str, backbone: str) -> None:
    """Weights with what is needed to rebuild the network."""
    save_network(network, f"{kind} network", {"backbone": backbone}, path)


def load_affinity(path: Path | str, kind: str) -> nn.Module:
    """A trained network of `kind`: our own file or, for irn, IRN's released one; InputError on any other."""
    stored = load_weights(path)
    if kind == "irn" and "fc_edge6.weight" in stored:
        config, state = {"backbone": "resnet50"}, IRNet.from_published(stored)
    else:
        config, state = read_network(path, f"{kind} network")
    network, _ = build_affinity(kind, config["backbone"], "none")
    load_weights_into(network, state, path)
    return network.eval()
