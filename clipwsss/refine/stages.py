"""Stages from class activation maps to a label map: walks, the background's score, deciders.

Maps and scores are float32 tensors of one image. A walk spreads the maps of the image's classes and returns
them at the image's size. The background then gets a score and becomes the first map. Deciders choose the
label of each pixel; labels are 0 for the background and 1..k for the k classes of the image's CAM file.

A new walk is one function here, one row of WALKS in make_pseudo.py, and in presets/ its rows of MAKE_PSEUDO
and its name in `find_block`. A new decider is one function here and one row of DECIDERS in make_pseudo.py.
"""
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cams.cam_files import CamFile, resize_cam
from .affinity import IRN_STRIDE, PSA_MULTIPLE, AffinityNet, IRNet
from .crf import BILATERAL, GAUSSIAN, dense_crf, unary_from_labels, unary_from_probabilities
from .labels import UNSURE
from .random_walk import color_affinity, pair_offsets, propagate, propagate_affinity


def cam_maps(file: CamFile, size: tuple[int, int]) -> Tensor:
    """Maps [k, H, W] of a CAM file at the size (H, W) of its image."""
    return torch.from_numpy(resize_cam(file, size))


def color_walk(maps: Tensor, image: Tensor, radius: int = 5, beta: float = 1.0, exp_times: int = 6,
               stride: int = 4) -> Tensor:
    """Random walk over colour differences, for which nothing is trained.

    maps: [k, h, w] of any resolution; image: uint8 [3, H, W], on the device that computes. The walk takes
    2^exp_times steps on a grid of one cell for each `stride` x `stride` pixels, over the affinities of pixels
    closer than `radius` to the power `beta`. Returns maps [k, H, W] in [0, 1] on the CPU.
    """
    size = tuple(image.shape[1:])
    seeds = to_grid(maps, size, stride).to(image.device)
    affinities = color_affinity(image, radius, size=tuple(seeds.shape[1:]))
    walked = propagate_affinity(seeds, affinities, pair_offsets(radius), exp_times, beta)
    return from_grid(walked, size, stride)


def irn_walk(maps: Tensor, image: Tensor, network: IRNet, radius: int = 5, beta: float = 10.0,
             exp_times: int = 8, pad_to: int = 512) -> Tensor:
    """IRN's random walk inside the boundaries that a trained network finds (Ahn, Cho & Kwak, CVPR 2019).

    Arguments and result are those of `color_walk`; the grid is the network's. The network is on the image's
    device and sees the image padded to a square of `pad_to` pixels, as in IRN's release, or with a `pad_to`
    of 0 as it is, as in CLIMS' and POLE's.
    """
    size = tuple(image.shape[1:])
    seeds = to_grid(maps, size, IRN_STRIDE).to(image.device)
    boundary = network.boundaries(image / 255, pad_to)
    walked = propagate(seeds, boundary, radius, beta, exp_times)
    return from_grid(walked, size, IRN_STRIDE)


def psa_walk(maps: Tensor, image: Tensor, network: AffinityNet, radius: int = 5, beta: float = 8.0,
             exp_times: int = 8) -> Tensor:
    """PSA's random walk over the affinities of a trained network (Ahn & Kwak, CVPR 2018).

    Arguments and result are those of `color_walk`, but the maps are [k, H, W] at the image's size; they are
    averaged over the cells of the network's grid. The network is on the image's device.
    """
    height, width = image.shape[1:]
    affinities = network.affinities(image / 255, radius)
    padded_height = math.ceil(height / PSA_MULTIPLE) * PSA_MULTIPLE
    stride = padded_height // affinities.shape[-2]
    padded = F.pad(maps, (0, -width % PSA_MULTIPLE, 0, -height % PSA_MULTIPLE))
    seeds = F.avg_pool2d(padded, stride).to(image.device)
    walked = propagate_affinity(seeds, affinities, pair_offsets(radius), exp_times, beta)
    return from_grid(walked, (height, width), stride)


def to_grid(maps: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Maps on the grid of cells of `stride` pixels that covers an image of this size (H, W)."""
    height, width = size
    grid = (math.ceil(height / stride), math.ceil(width / stride))
    return F.interpolate(maps[None], grid, mode="bilinear", align_corners=False)[0]


def from_grid(maps: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Maps of a grid at the image's size (H, W), divided by the largest value of all of them, as in IRN."""
    height, width = size
    maps = F.interpolate(maps[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    maps = maps[:, :height, :width]
    return (maps / maps.max().clamp(min=1e-12)).cpu()


def constant_background(maps: Tensor, score: float) -> Tensor:
    """Scores [1 + k, h, w]: a background of the same score everywhere, then maps [k, h, w] in [0, 1]."""
    return torch.cat([torch.full_like(maps[:1], score), maps])


def alpha_background(maps: Tensor, alpha: float) -> Tensor:
    """Scores [1 + k, h, w]: PSA's background (1 - largest map)^alpha, then maps [k, h, w] in [0, 1].

    Source: Ahn & Kwak, CVPR 2018, equation 2. There the background map walks together with the others.
    """
    background = (1 - maps.amax(0, keepdim=True)).clamp(min=0) ** alpha
    return torch.cat([background, maps])


def crf_labels(pixels: np.ndarray, labels: Tensor, n_labels: int, gaussian: Sequence[float] = GAUSSIAN,
               bilateral: Sequence[float] = BILATERAL, scores: Tensor | None = None,
               unsure: float = 0.0) -> Tensor:
    """Labels int64 [H, W] in 0..n_labels - 1 after ten iterations of the dense CRF that starts from `labels`.

    pixels: the image, uint8 [H, W, 3]. gaussian, bilateral: the kernels, see `dense_crf`. scores [n_labels,
    H, W] in [0, 1]: what the CRF starts from in place of labels. Pixels whose label has a probability below
    `unsure` are 255. IRN's crf_inference_label and WeakTr's are this function with kernels of their own;
    CLIP-ES starts from scores.
    """
    if scores is None:
        unary = unary_from_labels(labels.numpy(), n_labels)
    else:
        unary = unary_from_probabilities(scores.numpy())
    marginals = torch.from_numpy(dense_crf(pixels, unary, 10, gaussian, bilateral))
    probability, decided = marginals.max(0)
    decided[probability < unsure] = UNSURE
    return decided


def label_map(labels: Tensor, keys: np.ndarray) -> np.ndarray:
    """Labels [H, W] in 0..k as a label map uint8 [H, W] of the data set.

    keys: 0-based classes [k]. Label i > 0 becomes keys[i - 1] + 1: keys [4, 19] make 0 1 2 into 0 5 20. Label
    255 stays.
    """
    numbers = np.full(UNSURE + 1, UNSURE, np.uint8)
    numbers[:len(keys) + 1] = np.append(0, keys + 1)
    return numbers[labels.numpy()]
