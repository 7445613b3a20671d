"""What a CAM generator is: all that training, guidance and CAM files know of one."""
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError


class GeneratorSettings(NamedTuple):
    """What the command line says of a generator; each kind reads what it has.

    backbone: a network of that kind; weights: imagenet, none or a file. Of ResNets: output_stride, image size
    over map size; freeze_stages, how many of stem, layer1, ... do not learn; frozen_bn, whether batch norm
    keeps its statistics (IRN's classifier; CLIMS' generator trains with the batch's). generator: the kind
    that a file must hold, None for any. Of WeakTr: pooling of
    attention features over the tokens, avg or max; reduction of the heads inside the fusion; drop_path.
    """
    backbone: str = "resnet50"
    weights: str = "imagenet"
    output_stride: int = 16
    freeze_stages: int = 1
    frozen_bn: bool = False
    pooling: str = "max"
    reduction: int = 8
    drop_path: float = 0.1
    generator: str | None = None


def min_max(maps: Tensor, epsilon: float) -> Tensor:
    """Maps [..,h,w], each scaled by its own extremes: (m - min) / (max - min + epsilon).

    Source: SemPLeS' release (epsilon 0.1, 0.0001 while prompts are learned). Gradients reach the extremes.
    """
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low + epsilon)


class MapGenerator(nn.Module):
    """Turns images [B,3,H,W] in [0,1] into a map of each class: `forward(images) -> [B,K,h,w]`, in float32.

    config: plain values that rebuild it, with its `classes`. input_multiple: its maps cover an image whose
    sides are multiples of this. map_multiple: else they cover the image rounded up to this. from_minimum:
    CAM files scale its maps by their minimum and maximum, not from zero. parts: what `learn_only` knows, by
    the beginnings of the parameters' names.
    """
    config: dict
    input_multiple = 1
    map_multiple = 1
    from_minimum = False
    parts: Mapping[str, tuple[str, ...]] = {}

    def classify(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [B,K] by name, each trained by POLE eq. 1; the first ones are the classifier's answer."""
        raise NotImplementedError

    def parameter_groups(self, lr: float, head_ratio: float) -> list[dict]:
        """Optimiser groups: the backbone at `lr`, the new layers at `head_ratio` times it."""
        raise NotImplementedError

    def probabilities(self, maps: Tensor, scale: str, epsilon: float = 0.1,
                      size: tuple[int, int] | None = None) -> Tensor:
        """P in [0,1] of maps [B,K,h,w], resized to `size` where one is given.

        scale: `sigmoid` (CLIMS, POLE; before resizing) or `minmax` (SemPLeS; after it) of their positive
        part, as the maps that SemPLeS' release scales are not negative.
        """
        maps = torch.sigmoid(maps) if scale == "sigmoid" else F.relu(maps)
        if size:
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        return maps if scale == "sigmoid" else min_max(maps, epsilon)

    def learn_only(self, part: str) -> None:
        """Let only one of `parts` learn; `all` changes nothing. InputError lists what there is."""
        if part not in ("all", *self.parts):
            raise InputError(f"--tune {part}: this generator has {', '.join(('all', *self.parts))}")
        for name, parameter in self.named_parameters() if part != "all" else ():
            parameter.requires_grad_(name.startswith(self.parts[part]))
