"""Building affinity networks by name, and their files: ours, and IRN's released `res50_irn.pth`."""
from pathlib import Path

from torch import nn

from .. import resnet
from ..engine import load_weights, save_atomic
from ..errors import InputError
from .irn import IRNet
from .psa import AffinityNet

NETWORKS = {"irn": IRNet, "psa": AffinityNet}


def build_affinity(kind: str, backbone: str = "resnet50",
                   weights: str | Path = "imagenet") -> tuple[nn.Module, str]:
    """An untrained network of NETWORKS, and its backbone's name.

    weights: imagenet, none, a torchvision state dict, or a generator's file (train_cam, train_prompt), which
    names its own backbone. InputError on unfit weights.
    """
    stored = {} if str(weights) in ("imagenet", "none") else load_weights(weights)
    if "state_dict" in stored:
        backbone = stored["backbone"]
        body = _body(kind, backbone, "none")
        own = {name.removeprefix("backbone."): value for name, value in stored["state_dict"].items()
               if name.startswith("backbone.")}
        resnet.load_state(body, own, str(weights))
    else:
        body = _body(kind, backbone, weights)
    return NETWORKS[kind](body), backbone


def _body(kind: str, backbone: str, weights: str | Path) -> nn.Module:
    """IRN: output stride 16 by strides alone, as released; PSA: 8 with dilation. resnet_tiny: its own 4."""
    if backbone not in resnet.SPECS:
        raise InputError(f"--backbone {backbone}: valid are {', '.join(resnet.BACKBONES)}")
    strides = resnet.SPECS[backbone].output_strides
    wanted = {"irn": 16, "psa": 8}[kind]
    stride = wanted if wanted in strides else strides[-1]
    try:
        return resnet.build(backbone, stride, weights, dilate=kind == "psa")
    except ValueError as error:
        raise InputError(f"--weights {weights}: {error}") from error


def save_affinity(network: nn.Module, path: Path, kind: str, backbone: str) -> None:
    """Weights with what is needed to rebuild the network."""
    save_atomic({"network": kind, "backbone": backbone, "state_dict": network.state_dict()}, path)


def load_affinity(path: Path | str, kind: str) -> nn.Module:
    """A trained network of `kind`: our own file or, for irn, IRN's released one; InputError on any other."""
    stored = load_weights(path)
    if "network" in stored:
        if stored["network"] != kind:
            raise InputError(f"{path}: holds a network of --refine {stored['network']}, not of {kind}")
        network, state = NETWORKS[kind](_body(kind, stored["backbone"], "none")), stored["state_dict"]
    elif kind == "irn" and "fc_edge6.weight" in stored:
        network, state = IRNet(_body(kind, "resnet50", "none")), IRNet.from_published(stored)
    else:
        other = ", or IRN's res50_irn.pth" if kind == "irn" else "; the released ones have other backbones"
        raise InputError(f"{path}: holds no {kind} network (one that make_pseudo.py trained{other})")
    found = network.load_state_dict(state, strict=False) if _fits(network, state) else None
    wrong = ["shapes differ"] if found is None else [*found.unexpected_keys, *(
        name for name in found.missing_keys if not name.endswith("num_batches_tracked"))]
    if wrong:
        raise InputError(f"{path}: not the weights of this {kind} network ({wrong[0]})")
    return network.eval()


def _fits(network: nn.Module, state: dict) -> bool:
    own = network.state_dict()
    return all(own[name].shape == value.shape for name, value in state.items() if name in own)
