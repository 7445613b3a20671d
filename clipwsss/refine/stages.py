"""From class activation maps to a label map: stages one after another, and what the background scores.

A stage is called as stage(picture, maps) and returns maps; a new refinement is one class, whose fields are
its settings, and one row of STAGES. Walks take the classes' maps [k,h,w] of any resolution and return them
at the image's; stages that decide between labels (`takes_background`) have the background's score as maps[0].
"""
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cams.cam_files import CamFile, resize_cam
from ..errors import InputError
from .affinity import AFFINITY_NETWORKS
from .crf import dense_crf, unary_from_labels
from .irn import STRIDE as IRN_STRIDE
from .pamr import pamr
from .psa import MULTIPLE
from .random_walk import color_affinity, pair_offsets, propagate, propagate_affinity
from .segments import paint, read_segments, snap


class Picture(NamedTuple):
    """An image uint8 [H,W,3] and its name."""
    name: str
    pixels: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[:2]

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """uint8 [3,H,W]."""
        return torch.tensor(self.pixels, device=device).permute(2, 0, 1)


class Constant(NamedTuple):
    """The background has one score beside maps in [0, 1]."""
    score: float
    walks = False

    def beside(self, maps: Tensor) -> Tensor:
        return torch.cat([torch.full_like(maps[:1], self.score), maps])


class Alpha(NamedTuple):
    """PSA's background map (1 - max cam)^alpha, which walks too (CVPR 2018, equation 2)."""
    exponent: float
    walks = True

    def beside(self, maps: Tensor) -> Tensor:
        return torch.cat([(1 - maps.amax(0, keepdim=True)).clamp(min=0) ** self.exponent, maps])


class Walk(NamedTuple):
    """A random walk of 2^exp_times steps over affinities within `radius`, to the power `beta` (IRN)."""
    radius: int = 5
    beta: float = 10.0
    exp_times: int = 8


def widened(walked: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Maps of a coarse grid at the image's size, divided by their common maximum (IRN)."""
    maps = F.interpolate(walked[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    maps = maps[:, :size[0], :size[1]]
    return (maps / maps.max().clamp(min=1e-12)).cpu()


def on_grid(maps: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Maps on the grid of cells of `stride` pixels that covers the image."""
    grid = tuple(math.ceil(side / stride) for side in size)
    return F.interpolate(maps[None], grid, mode="bilinear", align_corners=False)[0]


class ColorWalk(NamedTuple):
    """The walk over colour differences: nothing is trained."""
    walk: Walk = Walk(beta=1.0, exp_times=6)
    color_stride: int = 4
    device: torch.device | str = "cpu"
    from_strided, takes_background = True, False

    def __call__(self, picture: Picture, maps: Tensor) -> Tensor:
        seeds = on_grid(maps, picture.size, self.color_stride).to(self.device)
        pixels, offsets = picture.tensor(self.device), pair_offsets(self.walk.radius)
        affinities = color_affinity(pixels, self.walk.radius, size=tuple(seeds.shape[-2:]))
        walked = propagate_affinity(seeds, affinities, offsets, self.walk.exp_times, self.walk.beta)
        return widened(walked, self.color_stride, picture.size)


class IrnWalk(NamedTuple):
    """The walk inside the boundaries that a trained IRNet sees; images are padded to `pad_to` as released."""
    network: nn.Module
    walk: Walk = Walk()
    pad_to: int = 512
    device: torch.device | str = "cpu"
    from_strided, takes_background = True, False

    def __call__(self, picture: Picture, maps: Tensor) -> Tensor:
        seeds = on_grid(maps, picture.size, IRN_STRIDE).to(self.device)
        boundary = self.network.to(self.device).boundaries(picture.tensor(self.device) / 255, self.pad_to)
        return widened(propagate(seeds, boundary, *self.walk), IRN_STRIDE, picture.size)


class PsaWalk(NamedTuple):
    """The walk over a trained AffinityNet's affinities; maps of the image's size are averaged over cells."""
    network: nn.Module
    walk: Walk = Walk(beta=8.0)
    device: torch.device | str = "cpu"
    from_strided, takes_background = False, False

    def __call__(self, picture: Picture, maps: Tensor) -> Tensor:
        (height, width), pixels = picture.size, picture.tensor(self.device) / 255
        affinities = self.network.to(self.device).affinities(pixels, self.walk.radius)
        stride = math.ceil(height / MULTIPLE) * MULTIPLE // affinities.shape[-2]
        seeds = F.avg_pool2d(F.pad(maps, (0, -width % MULTIPLE, 0, -height % MULTIPLE)), stride)
        offsets = pair_offsets(self.walk.radius)
        walked = propagate_affinity(seeds.to(self.device), affinities, offsets, self.walk.exp_times,
                                    self.walk.beta)
        return widened(walked, stride, picture.size)


class Crf(NamedTuple):
    """The dense CRF from the labels of highest score, as IRN's crf_inference_label."""
    iterations: int = 10
    from_strided, takes_background = False, True

    def __call__(self, picture: Picture, maps: Tensor) -> Tensor:
        unary = unary_from_labels(maps.argmax(0).numpy(), len(maps))
        return torch.from_numpy(dense_crf(picture.pixels, unary, self.iterations))


class Pamr(NamedTuple):
    """Pixel-adaptive mask refinement."""
    device: torch.device | str = "cpu"
    from_strided, takes_background = False, True

    def __call__(self, picture: Picture, maps: Tensor) -> Tensor:
        return pamr(picture.tensor(self.device).float() / 255, maps.to(self.device)).cpu()


class Snap(NamedTuple):
    """Labels snapped to class-agnostic segments of a folder (see `segments.snap`)."""
    folder: Path
    inside: float = 0.5
    cover: float = 0.85
    from_strided, takes_background = False, True

    def __call__(self, picture: Picture, maps: Tensor) -> Tensor:
        segments = [segment.mask for segment in read_segments(self.folder, picture.name, picture.size)]
        labels = snap(maps.argmax(0).numpy().astype(np.uint8), segments, self.inside, self.cover)
        return F.one_hot(torch.from_numpy(labels).long(), len(maps)).permute(2, 0, 1).float()


class Paint(NamedTuple):
    """Segments of a folder painted by their scores (FMA-WSSS, see `segments.paint`), the background's too."""
    folder: Path
    power: float = 0.6
    from_strided, takes_background = False, True

    def __call__(self, picture: Picture, maps: Tensor) -> Tensor:
        segments = read_segments(self.folder, picture.name, picture.size)
        labels = torch.from_numpy(paint(maps[1:].numpy(), segments, self.power)).long()
        return F.one_hot(labels, len(maps)).permute(2, 0, 1).float()


STAGES = {"color": ColorWalk, "irn": IrnWalk, "psa": PsaWalk, "crf": Crf, "pamr": Pamr}


def build_stage(name: str, **settings: object) -> Callable[[Picture, Tensor], Tensor]:
    """A stage of STAGES with those of the settings that it has a field for."""
    stage = STAGES[name]
    return stage(**{field: value for field, value in settings.items() if field in stage._fields})


def check_stages(names: list[str], painted: bool) -> str | None:
    """The affinity network's kind among --refine's stages, if any; InputError for stages that do not go.

    painted: segments decide at the end, from maps that no CRF or PAMR has decided before.
    """
    walks = [name for name in names if name != "none" and not STAGES[name].takes_background]
    alone = "none" not in names or names == ["none"]
    if len(walks) > 1 or walks and names[0] != walks[0] or not alone:
        raise InputError(f"--refine {' '.join(names)}: one walk at most (color, irn, psa), before crf and "
                         "pamr; none stands alone")
    if painted and names != ["none"] and names != walks:
        raise InputError(f"--refine {' '.join(names)}: --segment-rule fma paints by maps; use none or a walk")
    return walks[0] if walks and walks[0] in AFFINITY_NETWORKS else None


def refined_maps(picture: Picture, file: CamFile, background: Constant | Alpha, stages: Sequence) -> Tensor:
    """Scores [1 + k,H,W] of background and the file's classes after all stages."""
    strided = bool(stages) and stages[0].from_strided
    maps = torch.from_numpy(file.cam if strided else resize_cam(file, picture.size))
    complete = background.walks
    maps = background.beside(maps) if complete else maps
    for stage in stages:
        if stage.takes_background and not complete:
            maps, complete = background.beside(maps), True
        maps = stage(picture, maps)
    return maps if complete else background.beside(maps)


def refined_mask(picture: Picture, file: CamFile, background: Constant | Alpha,
                 stages: Sequence) -> np.ndarray:
    """Label map uint8 [H,W] of a picture, 0 the background."""
    with torch.inference_mode():
        labels = refined_maps(picture, file, background, stages).argmax(0).numpy()
    return np.append(0, file.keys + 1).astype(np.uint8)[labels]
