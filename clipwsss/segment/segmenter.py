"""The final segmenter: its network from published or own weights, its file, and its exported program.

Label 0 of a segmenter is the background, label i is the i-th class.
"""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError, input_errors
from ..files import (atomic_path, load_backbone, load_weights, load_weights_into, read_network,
                     save_network)
from ..networks import deeplab, mask2former, resnet

SEGMENTERS = (*deeplab.DEEPLABS, "mask2former")


def build_segmenter(design: dict, n_labels: int, weights: str | Path = "none") -> tuple[nn.Module, dict]:
    """(network, complete design) of a segmenter with n_labels outputs, the background among them.

    design: the fields of `deeplab.Design`, of which mask2former needs `network` alone. weights: `imagenet`,
    `none`, or a file of torchvision's, of a generator or of deeplab-pytorch's; for mask2former `none` or the
    name or folder of a model of the package transformers. The complete design rebuilds the network without
    these weights: it adds the layout that deeplab-pytorch's weights need, or mask2former's configuration.
    InputError names weights that do not fit.
    """
    if design["network"] == "mask2former":
        network = mask2former.build_mask2former(n_labels, str(weights), design.get("model"))
        return network, {"network": "mask2former", "model": network.model.config.to_dict()}
    stored = load_weights(weights) if Path(weights).is_file() else {}
    from_deeplab_pytorch = deeplab.is_deeplab_pytorch(stored)
    design = {**design, "caffe": from_deeplab_pytorch or design.get("caffe", False)}
    with input_errors():
        network = deeplab.build_deeplab(deeplab.Design(**design), n_labels)
    if from_deeplab_pytorch:
        load_deeplab_pytorch(network, stored, weights)
    elif str(weights) != "none":
        load_backbone(network.backbone, weights, design["backbone"], resnet.RESNET_WEIGHTS)
    return network, design


def load_deeplab_pytorch(network: deeplab.DeepLab, stored: dict[str, Tensor], source: str | Path) -> None:
    """Load deeplab-pytorch's weights; those of V1 have no ASPP, which then keeps its random weights.

    InputError names `source` and what does not fit, as for a network that is not DeepLabV2.
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


def save_segmenter(network: nn.Module, design: dict, classes: Sequence[str], palette: NDArray,
                   path: Path | str) -> None:
    """Write a segmenter's file: its weights, complete design, classes and palette uint8 [256,3]."""
    stored_palette = torch.from_numpy(np.asarray(palette, np.uint8).copy())
    config = {"design": design, "classes": list(classes), "palette": stored_palette}
    save_network(network, "segmenter", config, path)


def load_segmenter(path: Path | str) -> tuple[nn.Module, dict, list[str], NDArray]:
    """(network in eval mode, design, classes, palette uint8 [256,3]) of a segmenter's file.

    InputError where the file is missing or not a segmenter's.
    """
    config, state = read_network(path, "segmenter")
    with input_errors(f"{path}: damaged; its config builds no segmenter: ", Exception):
        classes = config["classes"]
        palette = np.asarray(config["palette"])
        network, design = build_segmenter(config["design"], len(classes) + 1)
    load_weights_into(network.eval(), state, path)
    return network, design, classes, palette


class ImageLogits(nn.Module):
    """A segmenter whose logits have the size of the image: images [B,3,H,W] in [0,1] -> [B,n_labels,H,W]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.network(images), images.shape[-2:], mode="bilinear", align_corners=False)


def export_network(network: nn.Module, path: Path) -> None:
    """Write `ImageLogits` of a network for any batch and image size: .pt2 for torch.export, .onnx for ONNX.

    A .pt2 file is used as `torch.export.load(path).module()(images)`. InputError for another suffix;
    ModuleNotFoundError where ONNX's packages are missing.
    """
    if path.suffix not in (".pt2", ".onnx"):
        raise InputError(f"--export {path}: the name must end in .pt2 or .onnx")
    if path.suffix == ".onnx":
        try:
            import onnxscript  # noqa: F401
        except ModuleNotFoundError:
            raise ModuleNotFoundError("--export to .onnx needs: pip install onnx onnxscript") from None
    batch_height_and_width = {axis: torch.export.Dim.AUTO for axis in (0, 2, 3)}
    example = torch.rand(2, 3, 96, 128)
    with torch.no_grad(), atomic_path(path) as temporary:
        program = torch.export.export(ImageLogits(network).cpu().eval(), (example,),
                                      dynamic_shapes={"images": batch_height_and_width})
        if path.suffix == ".pt2":
            torch.export.save(program, temporary)
        else:
            torch.onnx.export(program, (), temporary, dynamo=True, external_data=False)
