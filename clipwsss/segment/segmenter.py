"""The final segmenter: a network with its classes and colours, its start, its file, its exported program."""
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, input_errors
from ..files import atomic_path, load_weights_into, load_weights, read_network, save_network
from ..networks import deeplab, mask2former, resnet
from ..weights import load_backbone

SEGMENTERS = (*deeplab.DEEPLABS, "mask2former")


class Segmenter(NamedTuple):
    """A network, the design it was built from, its classes and their palette uint8 [256,3].

    Label 0 is the background, label i the i-th class.
    """
    network: nn.Module
    design: dict
    classes: Sequence[str]
    palette: np.ndarray

    def save(self, path: Path | str) -> None:
        """Write the weights with the arguments of `build_segmenter`."""
        palette = torch.from_numpy(np.asarray(self.palette, np.uint8).copy())
        config = {"design": self.design, "classes": list(self.classes), "palette": palette}
        save_network(self.network, "segmenter", config, path)


def build_segmenter(design: dict, classes: Sequence[str], palette: np.ndarray | torch.Tensor,
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
    stored = {} if str(weights) in ("none", "imagenet") else load_weights(weights)
    from_deeplab_pytorch = deeplab.is_deeplab_pytorch(stored)
    design = {**design, "caffe": from_deeplab_pytorch or design.get("caffe", False)}
    with input_errors():
        network = deeplab.build(deeplab.Design(**design), n_labels)
    if from_deeplab_pytorch:
        load_deeplab_pytorch(network, stored, weights)
    else:
        load_backbone(network.backbone, weights, design["backbone"], resnet.RESNET_WEIGHTS)
    return Segmenter(network, design, classes, np.asarray(palette))


def load_deeplab_pytorch(network: deeplab.DeepLab, stored: dict[str, Tensor], source: str | Path) -> None:
    """Load deeplab-pytorch's weights; those of V1 have no ASPP, which then keeps its random weights.

    InputError names `source` and what does not fit, as for a network that is no DeepLabV2.
    """
    state = deeplab.rename_deeplab_pytorch(stored)
    if any(name.startswith("aspp.") for name in state):
        print(f"{source}: weights of deeplab-pytorch; all layers are loaded")
    else:
        print(f"{source}: weights of deeplab-pytorch without ASPP; the ASPP starts from random weights")
        for name, value in network.state_dict().items():
            if name.startswith("aspp."):
                state[name] = value
    load_weights_into(network, state, source)


def load_segmenter(path: Path | str) -> Segmenter:
    """The segmenter of a file, its network in eval mode; InputError on other files."""
    config, state = read_network(path, "segmenter")
    with input_errors(f"{path}: damaged; its config builds no segmenter: ", Exception):
        segmenter = build_segmenter(**config)
    load_weights_into(segmenter.network.eval(), state, path)
    return segmenter


class ImageLogits(nn.Module):
    """A segmenter whose logits have the image's size: images [B,3,H,W] in [0,1] -> [B,n_labels,H,W]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.network(images), images.shape[-2:], mode="bilinear", align_corners=False)


def export_network(network: nn.Module, path: Path) -> None:
    """Write `ImageLogits` of a network, for any batch and image size, as .pt2 or (with onnxscript) .onnx.

    Read back: `torch.export.load(path).module()(images)`. InputError for another suffix.
    """
    if path.suffix not in (".pt2", ".onnx"):
        raise InputError(f"--export {path}: the suffix says the form; valid are .pt2 and .onnx")
    if path.suffix == ".onnx":
        try:
            import onnxscript  # noqa: F401
        except ModuleNotFoundError:
            raise ModuleNotFoundError("--export to .onnx needs: pip install onnx onnxscript") from None
    shapes = {"images": {axis: torch.export.Dim.AUTO for axis in (0, 2, 3)}}
    with torch.no_grad(), atomic_path(path) as temporary:
        program = torch.export.export(ImageLogits(network).cpu().eval(), (torch.rand(2, 3, 96, 128),),
                                      dynamic_shapes=shapes)
        if path.suffix == ".pt2":
            torch.export.save(program, temporary)
        else:
            torch.onnx.export(program, (), temporary, dynamo=True, external_data=False)
