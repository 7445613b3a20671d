"""Training images as mmsegmentation shows them to a segmenter: short sides, photometric distortion, crops.

Source: open-mmlab/mmsegmentation (Apache 2.0), configs/_base_/datasets/pascal_voc12.py and the transforms
Resize, RandomCrop, RandomFlip, PhotoMetricDistortion and Pad that it names.
"""
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode, functional

from .base import Transform
from .image_files import IGNORE
from .transforms import MEAN_COLOUR

LONGEST = 4  # a long side may have this many times the pixels of the short side: (2048, 512)
LARGEST_SHARE = 0.75  # of the labelled pixels of a crop, for its most frequent label
TRIES = 11  # crops that are drawn until one keeps LARGEST_SHARE; the eleventh is taken anyway
BRIGHTNESS = 32  # of 255, added or subtracted
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18 / 180  # of the colour circle, in both directions


def short_side_size(size: tuple[int, int], short_side: float) -> tuple[int, int]:
    """The (H, W) of an image of this size whose short side becomes `short_side`.

    The long side becomes at most 4 times as long. 500 x 375 pixels with a short side of 512 become 683 x 512.
    """
    factor = min(short_side / min(size), LONGEST * short_side / max(size))
    height, width = size
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def mmseg_transform(crop_size: int, scales: tuple[float, float]) -> Transform:
    """Scaling of the short side, cropping, mirroring and photometric distortion.

    (PIL RGB, mask uint8 [H, W]) -> (image float32 [3, crop_size, crop_size] in [0, 1], mask int64 of the same
    size). scales: the range of a factor; the short side becomes crop_size times it, rounded down. Images are
    resized bilinearly without antialiasing. Smaller images are padded at the right and bottom by the mean
    colour (mask: 255).
    """
    return partial(_mmseg_pair, crop_size, tuple(scales))


def _mmseg_pair(crop_size: int, scales: tuple[float, float], image: Image.Image,
                mask: np.ndarray) -> tuple[Tensor, Tensor]:
    """One image and its mask, as `mmseg_transform` says."""
    low, high = scales
    factor = low + (high - low) * float(torch.rand(()))
    picture = tv_tensors.Image(image)
    size = short_side_size(tuple(picture.shape[-2:]), int(crop_size * factor))
    picture = functional.resize(picture, size, InterpolationMode.BILINEAR, antialias=False)
    labels = torch.from_numpy(np.array(mask))[None]
    labels = functional.resize(labels, size, InterpolationMode.NEAREST)[0]

    rows, columns = draw_crop(labels, crop_size)
    picture = picture[:, rows, columns]
    labels = labels[rows, columns]
    if torch.rand(()) < 0.5:
        picture = picture.flip(-1)
        labels = labels.flip(-1)
    picture = torch.from_numpy(distort(picture.permute(1, 2, 0).numpy())).permute(2, 0, 1)

    height, width = labels.shape
    padding = [0, 0, crop_size - width, crop_size - height]  # left, top, right, bottom
    picture = functional.pad(picture, padding, fill=MEAN_COLOUR)
    labels = functional.pad(labels[None], padding, fill=IGNORE)[0]
    return functional.to_dtype(picture, torch.float32, scale=True).contiguous(), labels.long()


def draw_crop(labels: Tensor, side: int) -> tuple[slice, slice]:
    """The rows and columns of a random crop of labels [H, W] in which no label has too large a share."""
    height, width = labels.shape
    for _ in range(TRIES):
        y = int(torch.randint(max(height - side, 0) + 1, ()))
        x = int(torch.randint(max(width - side, 0) + 1, ()))
        rows = slice(y, y + side)
        columns = slice(x, x + side)
        crop = labels[rows, columns]
        counts = torch.bincount(crop[crop != IGNORE].flatten())
        if (counts > 0).sum() > 1 and counts.max() < LARGEST_SHARE * counts.sum():
            break
    return rows, columns


def distort(pixels: np.ndarray) -> np.ndarray:
    """Pixels uint8 [H, W, 3] with random brightness, contrast, saturation and hue, each in half of the cases.

    Contrast is changed before saturation and hue, or after them. Each change cuts values to 0 to 255.
    """
    contrast_first = _by_chance()
    if _by_chance():
        pixels = _cut(pixels + _between(-BRIGHTNESS, BRIGHTNESS))
    if contrast_first and _by_chance():
        pixels = _cut(pixels * _between(*CONTRAST))
    if _by_chance():
        hsv = _to_hsv(pixels)
        hsv[..., 1] = _cut(hsv[..., 1] * _between(*SATURATION))
        pixels = _from_hsv(hsv)
    if _by_chance():
        hsv = _to_hsv(pixels)
        hsv[..., 0] = (hsv[..., 0] + 256 * _between(-HUE, HUE)) % 256
        pixels = _from_hsv(hsv)
    if not contrast_first and _by_chance():
        pixels = _cut(pixels * _between(*CONTRAST))
    return pixels


def _by_chance() -> bool:
    return bool(torch.rand(()) < 0.5)


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _cut(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def _to_hsv(pixels: np.ndarray) -> np.ndarray:
    """RGB as float32 hue, saturation and value [H, W, 3], each from 0 to 255."""
    return np.array(Image.fromarray(pixels).convert("HSV"), np.float32)


def _from_hsv(hsv: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"))
