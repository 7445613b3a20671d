"""Trained segmenters as files that run without this package: torch.export's .pt2, or ONNX."""
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .engine import atomic_path
from .errors import InputError

EXAMPLE = (2, 3, 96, 128)


class ImageLogits(nn.Module):
    """A segmenter whose logits have the image's size: images [B,3,H,W] in [0,1] -> [B,n_labels,H,W]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,n_labels,H,W]."""
        return F.interpolate(self.network(images), images.shape[-2:], mode="bilinear", align_corners=False)


def export_network(network: nn.Module, path: Path) -> None:
    """Write `ImageLogits` of a network, for any batch and image size, as .pt2 or (with onnxscript) .onnx.

    Read back: `torch.export.load(path).module()(images)`. InputError for another suffix; ModuleNotFoundError
    says how to install what ONNX needs.
    """
    if path.suffix not in (".pt2", ".onnx"):
        raise InputError(f"--export {path}: the suffix says the form; valid are .pt2 and .onnx")
    whole = ImageLogits(network).cpu().eval()
    example = torch.rand(EXAMPLE).contiguous()
    shapes = {"images": {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    with torch.no_grad():
        program = torch.export.export(whole, (example,), dynamic_shapes=shapes)
        if path.suffix == ".pt2":
            with atomic_path(path) as temporary:
                torch.export.save(program, temporary)
        else:
            export_onnx(program, path)
    print(f"exported {path} ({path.stat().st_size / 1e6:.1f} MB)")


def export_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write an exported program as ONNX."""
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--export to .onnx needs: pip install onnx onnxscript") from None
    with atomic_path(path) as temporary:
        torch.onnx.export(program, (), temporary, dynamo=True, external_data=False)
