"""Trained segmenters as files that run without this package: torch.export's .pt2, or ONNX."""
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..files import atomic_path


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
