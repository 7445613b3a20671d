"""From class activation maps to a label map: random walk, background, dense CRF, class-agnostic segments."""
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .irn import STRIDE as IRN_STRIDE
from .psa import MULTIPLE
from ..cams.files import CamFile, resize_cam
from .crf import dense_crf, unary_from_labels
from ..errors import InputError
from .random_walk import color_affinity, pair_offsets, propagate, propagate_affinity
from .segments import read_segments, snap


@dataclass
class Refiner:
    """How maps become labels. Defaults are IRN's (beta and threshold of PSA: 8 and "alpha").

    walk: none, color, psa or irn; the last two use `network` on `device`. threshold: the background's score
    beside maps in [0, 1], or "alpha": PSA's map (1 - max cam)^alpha, which walks too (CVPR 2018, equation 2).
    """
    walk: str = "none"
    network: nn.Module | None = None
    device: torch.device | str = "cpu"
    threshold: float | str = 0.25
    alpha: float = 16.0
    radius: int = 5
    beta: float = 10.0
    exp_times: int = 8
    color_stride: int = 4
    pad_to: int = 512
    crf: bool = False
    segments: Path | None = None
    segment_inside: float = 0.5
    segment_cover: float = 0.85

    def mask(self, image: np.ndarray, file: CamFile, name: str = "") -> np.ndarray:
        """Label map uint8 [H, W] of an image uint8 [H, W, 3], 0 the background; `name` finds its segments."""
        maps = self.maps(image, file)
        if self.threshold != "alpha":
            maps = np.concatenate([np.full_like(maps[:1], self.threshold), maps])
        labels = maps.argmax(0)
        if self.crf:
            labels = dense_crf(image, unary_from_labels(labels, len(maps))).argmax(0)
        mask = np.append(0, file.keys + 1).astype(np.uint8)[labels]
        if self.segments is None:
            return mask
        segments = read_segments(self.segments, name, mask.shape)
        return snap(mask, segments, self.segment_inside, self.segment_cover)

    @torch.inference_mode()
    def maps(self, image: np.ndarray, file: CamFile) -> np.ndarray:
        """Maps float32 [k, H, W] of an image uint8 [H, W, 3]; after a walk divided by their maximum (IRN).

        With threshold "alpha" the background's map comes first. PSA's walk averages maps of the image's size
        over its cells, the others take those of stride 4, as the releases do.
        """
        size = image.shape[:2]
        if self.walk in ("none", "psa"):
            seeds = torch.from_numpy(resize_cam(file, size))
        else:
            stride = self.color_stride if self.walk == "color" else IRN_STRIDE
            grid = tuple(math.ceil(side / stride) for side in size)
            seeds = torch.from_numpy(file.cam)
            if tuple(seeds.shape[-2:]) != grid:
                seeds = F.interpolate(seeds[None], grid, mode="bilinear", align_corners=False)[0]
        if self.threshold == "alpha":
            seeds = torch.cat([(1 - seeds.amax(0, keepdim=True)).clamp(min=0) ** self.alpha, seeds])
        if self.walk == "none":
            return seeds.numpy()
        pixels = torch.tensor(image, device=self.device).permute(2, 0, 1)
        if self.network is not None:
            self.network.to(self.device)
        if self.walk == "psa":
            affinities = self.network.affinities(pixels / 255, self.radius)
            stride = math.ceil(size[0] / MULTIPLE) * MULTIPLE // affinities.shape[-2]
            seeds = F.avg_pool2d(F.pad(seeds, (0, -size[1] % MULTIPLE, 0, -size[0] % MULTIPLE)), stride)
        elif self.walk == "color":
            affinities = color_affinity(pixels, self.radius, size=grid)
        seeds = seeds.to(self.device)
        if self.walk == "irn":
            boundary, _ = self.network.boundaries(pixels / 255, self.pad_to)
            walked = propagate(seeds, boundary, self.radius, self.beta, self.exp_times)
        else:
            offsets = pair_offsets(self.radius)
            walked = propagate_affinity(seeds, affinities, offsets, self.exp_times, self.beta)
        walked = F.interpolate(walked[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
        walked = walked[:, :size[0], :size[1]]
        return (walked / walked.max().clamp(min=1e-12)).cpu().numpy()


def check_cam(file: CamFile, where: Path | str, size: tuple[int, int], n_classes: int) -> CamFile:
    """The file itself if it fits an image (H, W) of this data; InputError that begins with `where` if not."""
    if file.keys.max() >= n_classes:
        raise InputError(f"{where}: class {file.keys.max()} in its keys; this data has 0..{n_classes - 1}")
    if file.high_res is not None and file.high_res.shape[1:] != tuple(size):
        found = list(file.high_res.shape[1:])
        raise InputError(f"{where}: high_res is {found}, its image {list(size)} (H, W)")
    height, width = file.cam.shape[1:]
    ratio = size[0] / size[1]  # maps have the image's shape up to the rounding of each side
    if height > size[0] or width > size[1] or abs(height - width * ratio) > max(1, ratio):
        raise InputError(f"{where}: maps of {[height, width]} do not fit an image of {list(size)} (H, W)")
    return file
