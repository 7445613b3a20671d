"""What every CAM generator offers to training, guidance and CAM files."""
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError


def min_max(maps: Tensor, epsilon: float) -> Tensor:
    """Maps [..,h,w], each scaled by its own extremes: (m - min) / (max - min + epsilon).

    Source: SemPLeS' release (epsilon 0.1; 0.0001 while prompts are learned). Gradients reach the extremes.
    """
    low = maps.amin(dim=(-2, -1), keepdim=True)
    high = maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low + epsilon)


class MapGenerator(nn.Module):
    """Turns images [B,3,H,W] in [0,1] into a map of each class: `forward(images) -> [B,K,h,w]`, in float32.

    config: the plain values that build it again, with its `classes`.
    input_multiple: the sides of an input image must be multiples of this for its maps to cover it whole.
    map_multiple: the maps cover the image rounded up to a multiple of this.
    from_minimum: CAM files scale each map from its minimum to its maximum, not from zero.
    parts: what `learn_only` can select; each part names the beginnings of its parameters' names.
    """
    config: dict
    input_multiple = 1
    map_multiple = 1
    from_minimum = False
    parts: Mapping[str, tuple[str, ...]] = {}

    def classify(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [B,K] by name, each trained by POLE eq. 1; the first ones are the classifier's scores."""
        raise NotImplementedError

    def parameter_groups(self, lr: float, head_ratio: float) -> list[dict]:
        """Optimiser groups: the backbone at `lr`, the new layers at `head_ratio` times it."""
        raise NotImplementedError

    def probabilities(self, maps: Tensor, scale: str, epsilon: float = 0.1,
                      size: tuple[int, int] | None = None) -> Tensor:
        """P in [0,1] of maps [B,K,h,w], resized to `size` (H, W) where one is given.

        scale: `sigmoid` (CLIMS and POLE), taken before resizing; or `minmax` (SemPLeS), taken after resizing
        and of the maps' positive part, because the maps that SemPLeS' release scales are not negative.
        """
        maps = torch.sigmoid(maps) if scale == "sigmoid" else F.relu(maps)
        if size:
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        return maps if scale == "sigmoid" else min_max(maps, epsilon)

    def learn_only(self, part: str) -> None:
        """Freeze all parameters that are not of this one of `parts`; `all` freezes none.

        InputError lists the parts that the generator has.
        """
        if part == "all":
            return
        if part not in self.parts:
            raise InputError(f"--tune {part}: this generator has {', '.join(('all', *self.parts))}")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(self.parts[part]))
