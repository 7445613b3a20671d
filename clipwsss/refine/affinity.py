"""The networks that learn the affinity of neighbouring pixels from CAMs: IRN's and PSA's, and their files."""
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..files import (load_backbone, load_weights, load_weights_into, read_network, save_network,
                     start_file)
from ..networks import resnet
from .labels import pair_terms, pair_views, shrink_labels
from .random_walk import pair_offsets, pair_slices, straight_path

IRN_STRIDE = 4     # size of an image over that of its boundary map
IRN_MULTIPLE = 16  # IRN's padded images have sides that are multiples of the deepest stage's stride
PSA_MULTIPLE = 8   # PSA's images are padded to whole cells of 8 x 8 pixels


class IRNet(nn.Module):
    """IRN's network of class boundaries (Ahn, Cho & Kwak, CVPR 2019): boundary heads on a fixed ResNet.

    The backbone has output stride 16 without dilation, as published, and is built with `frozen_bn`. The heads
    have the published names (`from_published`). The other half of the published network, displacements to the
    centres of instances, has no influence on semantic masks and is left out. Stages of other backbones that
    are finer than the boundary map are averaged first.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        for level, width in enumerate(backbone.channels, 1):
            branch = nn.Sequential(nn.Conv2d(width, 32, 1, bias=False), nn.GroupNorm(4, 32))
            self.add_module(f"fc_edge{level}", branch)
        self.fc_edge6 = nn.Conv2d(5 * 32, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Boundary logits [B, 1, h, w] of images [B, 3, H, W] in [0, 1]; h is H / 4 rounded up."""
        with torch.no_grad():
            levels = self.backbone(images)
        height, width = images.shape[-2:]
        grid = (math.ceil(height / IRN_STRIDE), math.ceil(width / IRN_STRIDE))
        edges = []
        for number, level in enumerate(levels, 1):
            if level.shape[-2] > grid[0]:
                level = F.interpolate(level, grid, mode="area")
            head = self.get_submodule(f"fc_edge{number}")
            edges.append(F.relu(_enlarge(head(level), grid)))
        return self.fc_edge6(torch.cat(edges, 1))

    def parameter_groups(self, lr: float) -> list[dict]:
        """The boundary heads, which learn at the rate `lr` (IRN's train_irn)."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]

    @torch.inference_mode()
    def boundaries(self, image: Tensor, pad_to: int = 512) -> Tensor:
        """Boundary map [h, w] in [0, 1] of an image [3, H, W] in [0, 1].

        The logits of the image and of its mirror image are averaged. Both are padded with the mean colour to
        a square of `pad_to` pixels, as in IRN's release. A longer side is padded to a multiple of 16; the
        release would cut it. With a `pad_to` of 0 nothing is padded, as in CLIMS' and POLE's releases.
        """
        height, width = image.shape[-2:]
        padded_height = height
        padded_width = width
        if pad_to > 0:
            padded_height = max(pad_to, math.ceil(height / IRN_MULTIPLE) * IRN_MULTIPLE)
            padded_width = max(pad_to, math.ceil(width / IRN_MULTIPLE) * IRN_MULTIPLE)
        mean = self.backbone.mean
        both = torch.stack([image, image.flip(-1)])
        both = F.pad(both - mean, (0, padded_width - width, 0, padded_height - height)) + mean
        logits = self(both)[..., :math.ceil(height / IRN_STRIDE), :math.ceil(width / IRN_STRIDE)]
        return torch.sigmoid((logits[0, 0] + logits[1, 0].flip(-1)) / 2)

    def loss_terms(self, images: Tensor, labels: Tensor, radius: int = 10) -> dict[str, tuple]:
        """IRN's boundary loss of images [B, 3, H, W] with confident labels [B, H, W] (255 where unsure).

        The terms are the cross entropies of `path_affinity` over pairs of background, pairs of one class and
        pairs of two classes (see `pair_terms`). Source: the release's train_irn.
        """
        logits = self(images)
        affinity = path_affinity(torch.sigmoid(logits[:, 0].float()), radius)
        return pair_terms(affinity, shrink_labels(labels, logits.shape[-2:]), radius)

    @staticmethod
    def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of IRN's released network under the names of this class.

        The released file lists each stage of the backbone several times; the names "resnet50.*" are kept.
        """
        renamed = {}
        for name, value in state.items():
            if name.startswith("fc_edge"):
                renamed[name] = value
            elif name.startswith("resnet50.") and not name.startswith("resnet50.fc."):
                renamed[name.replace("resnet50.", "backbone.", 1)] = value
        return renamed


def _enlarge(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Features on a finer grid: enlarged bilinearly by a power of two and cut, as in IRN's release.

    The strides of the stages are powers of two, and the sides of their maps are rounded up: 24 rows at a
    quarter of a grid of 94 rows.
    """
    ratio = max(grid[0] / features.shape[-2], grid[1] / features.shape[-1])
    factor = 2 ** math.ceil(math.log2(ratio))
    if factor > 1:
        features = F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
    return features[..., :grid[0], :grid[1]]


def path_affinity(boundary: Tensor, radius: int) -> Tensor:
    """IRN's affinity of pairs of pixels: 1 - the largest boundary value on the path between the two.

    boundary [B, h, w] in [0, 1] -> [B, n, y, x], the pairs of `pair_views`. The place of the maximum is found
    without gradients and then read with them: the backward pass keeps one index for each pair.
    """
    reach = radius - 1
    width = boundary.shape[-1]
    first, _ = pair_views(boundary, radius)
    rows, columns = first.shape[-2:]
    places = []
    with torch.no_grad():
        for dy, dx in pair_offsets(radius):
            largest = torch.full_like(first, -1)
            place = torch.zeros_like(first, dtype=torch.int64)
            for y, x in straight_path(dy, dx):
                values = boundary[:, y:y + rows, reach + x:reach + x + columns]
                place.masked_fill_(values > largest, y * width + x)
                largest = torch.maximum(largest, values)
            places.append(place)
        # `place` counts from the pair's first pixel, whose own place in the flat map is added.
        pixels = torch.arange(boundary.shape[-2] * width, device=boundary.device).view(-1, width)
        index = torch.stack(places, 1) + pixels[:rows, reach:reach + columns]
    return 1 - boundary.flatten(1).gather(1, index.flatten(1)).view_as(index)


class AffinityNet(nn.Module):
    """PSA's network (Ahn & Kwak, CVPR 2018): features whose distance gives the affinity of two pixels.

    The features [B, 448, h, w] come from the last three stages of a backbone, at the resolution of the first
    of them. The paper's ResNet-38 has 512, 1024 and 4096 channels there, a ResNet-50 has 512, 1024 and 2048.
    The heads have the released names. The stem, the first stage and all batch norm are fixed, as in the
    release; the backbone is built with `frozen_bn`.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        for module in (backbone.conv1, backbone.layer1, *backbone.kept_in_eval):
            module.requires_grad_(False)
        for name, width, out in zip(("f8_3", "f8_4", "f8_5"), backbone.channels[2:], (64, 128, 256)):
            self.add_module(name, nn.Conv2d(width, out, 1, bias=False))
            nn.init.kaiming_normal_(self.get_submodule(name).weight)
        self.f9 = nn.Conv2d(448, 448, 1, bias=False)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 448, h, w] of images [B, 3, H, W] in [0, 1]."""
        levels = self.backbone(images)[2:]
        grid = levels[0].shape[-2:]
        mixed = []
        for head, level in zip((self.f8_3, self.f8_4, self.f8_5), levels):
            level = F.interpolate(level, grid, mode="bilinear", align_corners=False)
            mixed.append(F.elu(head(level)))
        return F.elu(self.f9(torch.cat(mixed, 1)))

    def parameter_groups(self, lr: float) -> list[dict]:
        """The backbone, which learns at the rate `lr`, and the new layers at 10 times it (train_aff)."""
        body = [p for p in self.backbone.parameters() if p.requires_grad]
        heads = [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
        return [{"params": body, "lr": lr}, {"params": heads, "lr": 10 * lr}]

    @torch.inference_mode()
    def affinities(self, image: Tensor, radius: int = 5) -> Tensor:
        """Affinities [n, h, w] of an image [3, H, W] in [0, 1] for `random_walk.propagate_affinity`.

        The image is padded with the mean colour to whole cells of 8 pixels. All pairs in the image count, as
        in the paper; the release leaves out those that start in the last rows or the outer columns.
        """
        height, width = image.shape[-2:]
        mean = self.backbone.mean
        padded = F.pad(image[None] - mean, (0, -width % PSA_MULTIPLE, 0, -height % PSA_MULTIPLE)) + mean
        features = self(padded)[0].float()
        affinities = features.new_zeros(len(pair_offsets(radius)), *features.shape[1:])
        for index, offset in enumerate(pair_offsets(radius)):
            first, second = pair_slices(features.shape[1:], *offset)
            affinities[index, *first] = feature_affinity(features[:, *first], features[:, *second], 0)
        return affinities

    def loss_terms(self, images: Tensor, labels: Tensor, radius: int = 5) -> dict[str, tuple]:
        """PSA's loss of images [B, 3, H, W] with confident labels [B, H, W] (255 where unsure).

        The terms are the cross entropies of the affinities over pairs of background, pairs of one class and
        pairs of two classes (see `pair_terms`). A cell has the label of its central pixel; the release
        averages the CRF's scores over the cell.
        """
        features = self(images)
        first, others = pair_views(features.float(), radius)
        affinity = torch.stack([feature_affinity(first, second, 1) for second in others], 1)
        return pair_terms(affinity, shrink_labels(labels, features.shape[-2:]), radius)


def feature_affinity(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """exp(-mean over `dim` of |first - second|), in (0, 1] (paper, equation 3; the mean is the release's)."""
    return torch.exp(-(first - second).abs().mean(dim))


AFFINITY_NETWORKS = {"irn": IRNet, "psa": AffinityNet}


def build_affinity(kind: str, backbone: str = "resnet50",
                   weights: str | Path = "imagenet") -> tuple[nn.Module, str]:
    """An untrained network of AFFINITY_NETWORKS and the name of its backbone.

    IRN's backbone has output stride 16 without dilation, as released; PSA's has 8 with dilation.
    weights: "imagenet", "none", the file of a torchvision state dict, or the file of a generator of train_cam
    or train_prompt, which names its own backbone. InputError where the weights are missing or do not fit.
    """
    if str(weights) not in ("imagenet", "none"):
        path = start_file(weights, backbone, resnet.RESNET_WEIGHTS)
        backbone = load_weights(path).get("config", {}).get("backbone", backbone)
    if backbone not in resnet.RESNETS:
        raise InputError(f"--weights {weights}: the backbone is {backbone}, but an affinity network needs a "
                         "ResNet; give imagenet, none or another file")
    highest = 16 if kind == "irn" else 8
    stride = next(item for item in resnet.RESNET_SPECS[backbone].output_strides if item <= highest)
    body = resnet.ResNet(backbone, stride, dilate=kind == "psa", frozen_bn=True)
    if str(weights) != "none":
        load_backbone(body, weights, backbone, resnet.RESNET_WEIGHTS)
    return AFFINITY_NETWORKS[kind](body), backbone


def smallest_crop(kind: str, backbone: str, radius: int) -> int:
    """Side in pixels of the smallest crop that holds pairs of cells within `radius` on the network's grid."""
    stride = IRN_STRIDE if kind == "irn" else resnet.RESNET_SPECS[backbone].output_strides[-1]
    return stride * (2 * radius - 1)


def save_affinity(network: nn.Module, path: Path, kind: str, backbone: str) -> None:
    """Write the weights of a network of AFFINITY_NETWORKS and what is needed to build it again."""
    save_network(network, f"{kind} network", {"backbone": backbone}, path)


def load_affinity(path: Path | str, kind: str) -> nn.Module:
    """A trained network of AFFINITY_NETWORKS in eval mode.

    The file is one of `save_affinity` or, for the kind irn, IRN's released res50_irn.pth. InputError names a
    file that is neither.
    """
    stored = load_weights(path)
    if kind == "irn" and "fc_edge6.weight" in stored:
        backbone = "resnet50"
        state = IRNet.from_published(stored)
    else:
        config, state = read_network(path, f"{kind} network")
        backbone = config["backbone"]
    network, _ = build_affinity(kind, backbone, "none")
    load_weights_into(network, state, path)
    return network.eval()
