"""The final segmenter: its network from published or own weights, its file and its use, and its export.

Label 0 of a segmenter is the background, label i is the i-th class.
"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..datasets.base import whole_image
from ..datasets.image_files import read_image
from ..errors import InputError, input_errors
from ..files import (atomic_path, load_backbone, load_weights, load_weights_into, misfit_errors,
                     read_network, save_network)
from ..networks import deeplab, mask2former, resnet
from ..training import pick_device, use_bf16
from .predict import CRF_KERNELS, class_probabilities, enlarge, reduced, refine

SEGMENTERS = (*deeplab.DEEPLABS, "mask2former")


def build_segmenter(design: dict, n_labels: int, weights: str | Path = "none",
                    classes: Sequence[str] = ()) -> tuple[nn.Module, dict]:
    """(network, complete design) of a segmenter with n_labels outputs, the background among them.

    design: the fields of `deeplab.Design`, of which mask2former needs `network` alone. weights: `imagenet`,
    `none`, or a file of torchvision's, of a generator, of deeplab-pytorch's or of a segmenter, whose labels
    are found by the names of the new `classes`; for mask2former `none`, a segmenter, or the name or folder of
    a model of the package transformers. A line says what is loaded. The complete design rebuilds the network
    without these weights: it adds the layout that deeplab-pytorch's weights need, or mask2former's
    configuration. InputError names weights that do not fit.
    """
    stored = load_weights(weights) if Path(weights).is_file() else {}
    before = {}  # the design of the segmenter that `weights` is
    if stored.get("kind") == "segmenter":
        config, state = read_network(weights, "segmenter")
        with input_errors(f"{weights}: damaged; its config is no segmenter's: ", Exception):
            before = dict(config["design"])
            classes_before = list(config["classes"])
    goes_on = before.get("network") == design["network"]
    if design["network"] == "mask2former":
        if goes_on:
            network = mask2former.build_mask2former(n_labels, "none", before["model"])
            load_segmenter_weights(network, state, classes_before, classes, weights)
        else:
            network = mask2former.build_mask2former(n_labels, str(weights), design.get("model"))
        return network, {"network": "mask2former", "model": network.model.config.to_dict()}
    from_deeplab_pytorch = deeplab.is_deeplab_pytorch(stored)
    caffe = from_deeplab_pytorch or before.get("caffe", False) or design.get("caffe", False)
    design = {**design, "caffe": caffe}
    with input_errors():
        network = deeplab.build_deeplab(deeplab.Design(**design), n_labels)
    if from_deeplab_pytorch:
        load_deeplab_pytorch(network, stored, weights)
    elif goes_on:
        load_segmenter_weights(network, state, classes_before, classes, weights)
    elif str(weights) != "none":
        load_backbone(network.backbone, weights, design["backbone"], resnet.RESNET_WEIGHTS)
        print(f"--weights {weights}: the backbone is loaded; all other layers start from random weights")
    return network, design


def load_segmenter_weights(network: nn.Module, state: dict[str, Tensor], classes_before: Sequence[str],
                           classes: Sequence[str], source: str | Path) -> None:
    """Load another segmenter's weights; classes that it does not know keep their random ones.

    classes_before, classes: the classes of `state` and of the network, which may differ in order and number.
    InputError names `source` and what does not fit.
    """
    shared = [name for name in classes if name in classes_before]
    new = [name for name in classes if name not in classes_before]
    lost = [name for name in classes_before if name not in classes]
    # Outputs of the network and of the file: the background, the shared classes, and what follows the labels.
    outputs = [0, *(1 + list(classes).index(name) for name in shared)]
    outputs_before = [0, *(1 + list(classes_before).index(name) for name in shared)]
    with misfit_errors(source, type(network).__name__):
        for name, value in network.state_dict().items():
            if name.startswith(network.label_layers) and name in state:
                value = value.clone()
                value[outputs] = state[name][outputs_before]
                value[1 + len(classes):] = state[name][1 + len(classes_before):]
                state[name] = value
    load_weights_into(network, state, source)
    line = f"--weights {source}: all layers are loaded"
    if new:
        line += f"; new classes, which start from random weights: {', '.join(new)}"
    if lost:
        line += f"; classes of the file that are not used: {', '.join(lost)}"
    print(line)


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


# The settings of a test, under the names of train_seg.py's flags. A segmenter's file keeps those it was made
# with, so that it is used in the same way later. max_side is the longer side, in pixels, that larger
# photographs are reduced to: that of the training images, whose objects have the size that was learnt.
TEST_SETTINGS = ("test_scales", "test_fusion", "test_flip", "crf", "crf_gaussian", "crf_bilateral",
                 "max_side", "short_side")
PLAIN_TEST = {"test_scales": [1.0], "test_fusion": "mean", "test_flip": False, "crf": False,
              "crf_gaussian": list(CRF_KERNELS[0]), "crf_bilateral": list(CRF_KERNELS[1]), "max_side": None,
              "short_side": 0}


def save_segmenter(network: nn.Module, design: dict, classes: Sequence[str], palette: NDArray,
                   path: Path | str, test: Mapping[str, object] = PLAIN_TEST) -> None:
    """Write a segmenter's file: weights, complete design, classes, palette uint8 [256,3], TEST_SETTINGS."""
    stored_palette = torch.from_numpy(np.asarray(palette, np.uint8).copy())
    config = {"design": design, "classes": list(classes), "palette": stored_palette, "test": dict(test)}
    save_network(network, "segmenter", config, path)


class Segmentation(NamedTuple):
    """What a segmenter says of a photograph of H x W pixels.

    labels: uint8 [H,W], the most probable label of each pixel. probabilities: float32 [n_labels,H,W] in
    [0,1]. names: of the labels, `background` first. palette: uint8 [n_labels,3], their colours.
    """
    labels: NDArray
    probabilities: NDArray
    names: list[str]
    palette: NDArray


class Segmenter:
    """A trained segmenter, read from its file, which labels photographs.

    Attributes: network (in eval mode), design, classes, palette uint8 [256,3], and test, the TEST_SETTINGS of
    its training, which may be changed: `segmenter.test["crf"] = False`. device: `cpu`, `cuda` or `auto`.
    InputError where the file is missing or not a segmenter's.
    """

    def __init__(self, path: Path | str, device: str = "auto"):
        config, state = read_network(path, "segmenter")
        with input_errors(f"{path}: damaged; its config builds no segmenter: ", Exception):
            self.classes = config["classes"]
            self.palette = np.asarray(config["palette"])
            self.network, self.design = build_segmenter(config["design"], len(self.classes) + 1)
            self.test = PLAIN_TEST | config.get("test", {})
        if "test" not in config:
            print(f"{path}: from an earlier version, which kept no test settings; images are predicted at "
                  "scale 1 and without CRF unless flags say otherwise")
        load_weights_into(self.network.eval(), state, path)
        self.device = pick_device(device)
        self.network.to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, photo: Path | str | Image.Image | NDArray) -> Segmentation:
        """Label one photograph; its probabilities take 4 n_labels bytes a pixel.

        photo: a file, which is turned as its EXIF tag says; a PIL image; or an array uint8 [H,W,3] or [H,W].
        InputError: a file that is missing or damaged. ValueError: pixels of another type or shape.
        """
        image = open_photo(photo)
        shown = reduced(image, self.test["max_side"])
        pixels, _ = whole_image(shown)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=use_bf16("auto", self.device)):
            probability = class_probabilities(
                self.network, pixels[None].to(self.device), self.test["test_scales"], self.test["test_flip"],
                self.test["test_fusion"], self.test["short_side"])
        kernels = None
        if self.test["crf"]:
            kernels = (self.test["crf_gaussian"], self.test["crf_bilateral"])
        refined = refine(np.asarray(shown), probability[0].cpu().numpy(), kernels)
        enlarged = enlarge(refined, (image.height, image.width))
        labels = enlarged.argmax(0).astype(np.uint8)
        names = ["background", *self.classes]
        return Segmentation(labels, enlarged, names, self.palette[:len(names)])


def open_photo(photo: Path | str | Image.Image | NDArray) -> Image.Image:
    """A photograph as an RGB image; arguments and errors are those of a `Segmenter`'s call."""
    if isinstance(photo, str | Path):
        return read_image(Path(photo), oriented=True)
    if isinstance(photo, Image.Image):
        if photo.mode.startswith(("I", "F")):
            raise ValueError(f"{photo.mode} pixels: convert the image to 8 bits a channel")
        return photo.convert("RGB")
    pixels = np.asarray(photo)
    is_image = pixels.ndim in (2, 3) and pixels.shape[2:] in ((), (3,)) and pixels.size > 0
    if pixels.dtype != np.uint8 or not is_image:
        raise ValueError(f"an image is an array uint8 [H, W, 3] or [H, W], not {pixels.dtype} "
                         f"{list(pixels.shape)}")
    return Image.fromarray(pixels).convert("RGB")


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
