"""Joint transforms of image and mask by torchvision v2's functions, all chance from torch's generator."""
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode, functional

IGNORE = 255
# Padding is ImageNet's mean colour in 8 bits, so that it is zero after a network's normalisation, as in IRN.
MEAN_COLOUR = [124, 116, 104]
AUGMENTS = ("crop", "area", "strong")
STRONG = 27  # of RandAugment's 30 steps: 9 of timm's 10
Pair = tuple[Tensor, Tensor | None]
Transform = Callable[[Image.Image, np.ndarray | None], Pair]


def train_transform(crop_size: int | None, resize_long: tuple[int, int] | None = (320, 640),
                    scales: tuple[float, ...] | None = None, flip: bool = True,
                    brightness: float = 0.0) -> Transform:
    """As IRN and CLIMS: (PIL RGB, uint8 mask [H, W] or None) -> (float32 [3, h, w] in [0, 1], int64 or None).

    resize_long draws the long side in pixels (both ends included), scales a factor instead, between two of
    them or one of more: images bicubic with antialiasing, masks nearest. A side below crop_size is padded by
    the mean colour (mask: 255), the image at a random place; None does not crop. brightness b: times
    U(1 - b, 1 + b) plus U(-b, b) / 4.
    """
    if resize_long and scales:
        raise ValueError("give resize_long or scales, not both")
    return partial(_transform, crop_size, resize_long, scales, flip, brightness)  # workers can receive it


def eval_transform() -> Transform:
    """The image at its own size as float32 [3, H, W] in [0, 1], the mask as int64 [H, W]."""
    return train_transform(None, resize_long=None, flip=False)


def area_transform(crop_size: int, strong: bool = True) -> Transform:
    """As DeiT and WeakTr train, of the image alone: a crop of 8 to 100 % of its area, mirrored or not.

    strong: also two strong changes of RandAugment's (each left out half of the time) and at times a rectangle
    erased.
    """
    changes, erasing = [], []
    if strong:
        changes = 2 * [v2.RandomApply([v2.RandAugment(1, STRONG, fill=MEAN_COLOUR)], 0.5)]
        erasing = [v2.RandomErasing(0.25, value=[value / 255 for value in MEAN_COLOUR])]
    return partial(_area, v2.Compose([
        v2.RandomResizedCrop(crop_size, interpolation=InterpolationMode.BICUBIC), v2.RandomHorizontalFlip(),
        *changes, v2.ToDtype(torch.float32, scale=True), *erasing]))


def _area(steps: v2.Compose, image: Image.Image, mask: np.ndarray | None = None) -> Pair:
    return steps(tv_tensors.Image(image)).as_subclass(Tensor), None


def square_transform(side: int) -> Transform:
    """The whole image at side x side pixels, whatever its shape, as CLIP sees it."""
    return partial(_square, side)


def _square(side: int, image: Image.Image, mask: np.ndarray | None = None) -> Pair:
    image = functional.resize(tv_tensors.Image(image), [side, side], antialias=True)
    return functional.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True), None


def _transform(crop_size: int | None, resize_long: tuple[int, int] | None, scales: tuple[float, ...] | None,
               flip: bool, brightness: float, image: Image.Image, mask: np.ndarray | None = None) -> Pair:
    parts = [tv_tensors.Image(image)]  # bytes until the last step, which is cheapest
    if mask is not None:
        parts.append(tv_tensors.Mask(mask))
    size = parts[0].shape[-2:]
    if resize_long or scales:
        if resize_long:
            factor = int(torch.randint(resize_long[0], resize_long[1] + 1, ())) / max(size)
        else:
            place, low, high = float(torch.rand(())), scales[0], scales[-1]
            factor = low + (high - low) * place if len(scales) == 2 else scales[int(place * len(scales))]
        size = [max(1, round(side * factor)) for side in size]
        parts = [functional.resize(part, size, InterpolationMode.BICUBIC, antialias=True) for part in parts]
    if flip and torch.rand(()) < 0.5:
        parts = [functional.horizontal_flip(part) for part in parts]
    if crop_size:
        (top, height, above, below), (left, width, before, after) = (_span(side, crop_size) for side in size)
        parts = [functional.crop(part, top, left, height, width) for part in parts]
        if (height, width) != (crop_size, crop_size):
            parts = [functional.pad(part, [before, above, after, below], fill=fill)
                     for part, fill in zip(parts, (MEAN_COLOUR, IGNORE))]
    image, *masks = (part.as_subclass(Tensor) for part in parts)
    image = functional.to_dtype(image, torch.float32, scale=True).contiguous()
    if brightness:
        gain, shift = brightness * (2 * torch.rand(2) - 1)
        image = image.mul_(1 + gain).add_(shift / 4).clamp_(0, 1)
    return image, masks[0].long() if masks else None


def _span(side: int, crop_size: int) -> tuple[int, int, int, int]:
    """(start, length, padding before, padding after) of the random crop along one side."""
    spare = side - crop_size
    offset = int(torch.randint(abs(spare) + 1, ()))
    return (offset, crop_size, 0, 0) if spare >= 0 else (0, side, offset, -spare - offset)
