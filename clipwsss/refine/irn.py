"""IRN's network of class boundaries, and its loss (Ahn, Cho & Kwak, CVPR 2019)."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .labels import pair_terms, pair_views, shrink_labels
from .random_walk import pair_offsets, straight_path

STRIDE = 4  # image size over the boundary map's
MULTIPLE = 16  # padded images are a multiple of the deepest stage's stride


class IRNet(nn.Module):
    """Boundary branches on a fixed ResNet (`frozen_bn`), as published one of output stride 16, undilated.

    Heads have the published names (`from_published`); the published network's other half, displacements to
    instance centres, changes nothing for semantic masks and is left out. Finer levels of other backbones are
    averaged first.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        for level, width in enumerate(backbone.channels, 1):
            branch = nn.Sequential(nn.Conv2d(width, 32, 1, bias=False), nn.GroupNorm(4, 32))
            self.add_module(f"fc_edge{level}", branch)
        self.fc_edge6 = nn.Conv2d(5 * 32, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Boundary logits [B, 1, h, w] of images [B, 3, H, W] in [0, 1]; h = H/4 rounded up."""
        with torch.no_grad():
            levels = self.backbone.stages(images)
        grid = tuple(math.ceil(side / STRIDE) for side in images.shape[-2:])
        levels = [F.interpolate(level, grid, mode="area") if level.shape[-2] > grid[0] else level
                  for level in levels]
        edges = [F.relu(_regrid(self.get_submodule(f"fc_edge{i}")(level), grid))
                 for i, level in enumerate(levels, 1)]
        return self.fc_edge6(torch.cat(edges, 1))

    def parameter_groups(self, lr: float) -> list[dict]:
        """The boundary heads at `lr` (IRN's train_irn)."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]

    @torch.inference_mode()
    def boundaries(self, image: Tensor, pad_to: int = 512) -> Tensor:
        """Boundary map [h, w] in [0, 1] of an image [3, H, W] in [0, 1].

        Logits of the image and its mirror image are averaged; both are padded with the mean colour to a
        square of `pad_to`, as released, larger ones to a multiple of 16, where the release would cut them.
        """
        height, width = image.shape[-2:]
        grid = math.ceil(height / STRIDE), math.ceil(width / STRIDE)
        right, bottom = (max(pad_to, math.ceil(side / MULTIPLE) * MULTIPLE) - side
                         for side in (width, height))
        mean = self.backbone.mean
        both = F.pad(torch.stack([image, image.flip(-1)]) - mean, (0, right, 0, bottom)) + mean
        logits = self(both)[..., :grid[0], :grid[1]]
        return torch.sigmoid((logits[0, 0] + logits[1, 0].flip(-1)) / 2)

    def loss_terms(self, images: Tensor, labels: Tensor, radius: int = 10) -> dict[str, Tensor]:
        """IRN's boundary loss of images [B, 3, H, W] with confident labels [B, H, W] (255 unsure).

        Cross entropy of `path_affinity` over background, foreground and unlike pairs (1 : 1 : 2). Weights,
        the 1e-5 in the logarithm and the final halving are the release's (train_irn).
        """
        logits = self(images)
        affinity = path_affinity(torch.sigmoid(logits[:, 0].float()), radius)
        return pair_terms(affinity, shrink_labels(labels, logits.shape[-2:]), radius)

    @staticmethod
    def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of IRN's released network under our names (it lists its stages several times)."""
        return {name.replace("resnet50.", "backbone.", 1): value for name, value in state.items()
                if name.startswith(("resnet50.", "fc_edge")) and not name.startswith("resnet50.fc.")}


def path_affinity(boundary: Tensor, radius: int) -> Tensor:
    """1 - the largest value on each pair's path: boundary [B, h, w] in [0, 1] -> [B, n, y, x] (`pair_views`).

    The maximum's place is found without gradients, then read with them: backward keeps one index per pair.
    """
    reach, width = radius - 1, boundary.shape[-1]
    first, _ = pair_views(boundary, radius)
    rows, columns = first.shape[-2:]
    places = []
    with torch.no_grad():
        for dy, dx in pair_offsets(radius):
            largest, place = torch.full_like(first, -1), torch.zeros_like(first, dtype=torch.int64)
            for y, x in straight_path(dy, dx):
                values = boundary[:, y:y + rows, reach + x:reach + x + columns]
                place.masked_fill_(values > largest, y * width + x)
                largest = torch.maximum(largest, values)
            places.append(place)
        corner = torch.arange(boundary.shape[-2] * width, device=boundary.device).view(-1, width)
        index = torch.stack(places, 1) + corner[:rows, reach:reach + columns]
    return 1 - boundary.flatten(1).gather(1, index.flatten(1)).view_as(index)


def _regrid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Features on a finer grid: enlarged bilinearly by a whole factor and cut, as published."""
    factor = round(grid[0] / features.shape[-2])
    if factor > 1:
        features = F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
    return features[..., :grid[0], :grid[1]]
