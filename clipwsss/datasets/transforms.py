"""Random transforms of image and mask for training, by torchvision's v2 functions and torch's generator."""
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode, functional

from .base import Transform
from .image_files import IGNORE

# Padding is ImageNet's mean colour in 8 bits, so that it is zero after a network's normalisation, as in IRN.
MEAN_COLOUR = [124, 116, 104]
AUGMENTS = ("crop", "area", "strong")  # `train_transform`, `area_transform` and the same with strong changes
STRONG = 27  # of RandAugment's 30 magnitudes: 9 of timm's 10
Pair = tuple[Tensor, Tensor | None]


def train_transform(crop_size: int | None, resize_long: tuple[int, int] | None = (320, 640),
                    scales: tuple[float, ...] | None = None, flip: bool = True,
                    brightness: float = 0.0, deeplab: bool = False) -> Transform:
    """Scaling, mirroring and cropping as in IRN and CLIMS, or with `deeplab` as in deeplab-pytorch.

    (PIL RGB, mask uint8 [H, W] or None) -> (image float32 [3, h, w] in [0, 1], mask int64 [h, w] or None).

    resize_long: range of the long side in pixels, both ends included. scales: instead, two values are the
    range of a factor, other numbers of values are the factors themselves. Images are resized bicubically with
    antialiasing; a mask's pixel takes the label whose centre is nearest. ValueError if both are given.
    crop_size: side of a random crop. A shorter side is padded, the image being at a random place, by the mean
    colour (mask: 255). None does not crop.
    deeplab: images are resized bilinearly without antialiasing, to sides that are rounded down, and a shorter
    side is padded at its end.
    brightness: at b, values are multiplied by U(1 - b, 1 + b) and U(-b, b) / 4 is added.
    """
    if resize_long and scales:
        raise ValueError("give resize_long or scales, not both")
    # A partial of a module's function can be pickled for the loader's processes.
    return partial(_train_pair, crop_size, resize_long, scales, flip, brightness, deeplab)


def area_transform(crop_size: int, strong: bool = True) -> Transform:
    """A crop of 8 to 100 % of the image's area, perhaps mirrored, as for DeiT and WeakTr; masks are dropped.

    strong: also two changes by RandAugment, each of which is left out half of the time, and in a quarter of
    the images an erased rectangle.
    """
    changes = []
    erasing = []
    if strong:
        change = v2.RandomApply([v2.RandAugment(1, STRONG, fill=MEAN_COLOUR)], 0.5)
        changes = [change, change]
        erasing = [v2.RandomErasing(0.25, value=[value / 255 for value in MEAN_COLOUR])]
    steps = v2.Compose([
        v2.RandomResizedCrop(crop_size, interpolation=InterpolationMode.BICUBIC), v2.RandomHorizontalFlip(),
        *changes, v2.ToDtype(torch.float32, scale=True), *erasing])
    return partial(_area_pair, steps)


def square_transform(side: int) -> Transform:
    """The whole image at side x side pixels, whatever its shape, as CLIP sees it; masks are dropped."""
    return partial(_square_pair, side)


def _area_pair(steps: v2.Compose, image: Image.Image, mask: np.ndarray | None = None) -> Pair:
    """The `steps` of `area_transform` on one image; the mask is dropped."""
    return steps(tv_tensors.Image(image)).as_subclass(Tensor), None


def _square_pair(side: int, image: Image.Image, mask: np.ndarray | None = None) -> Pair:
    """One image (PIL RGB) as float32 [3, side, side] in [0, 1]; the mask is dropped."""
    image = functional.resize(tv_tensors.Image(image), [side, side], antialias=True)
    return functional.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True), None


def _train_pair(crop_size: int | None, resize_long: tuple[int, int] | None, scales: tuple[float, ...] | None,
                flip: bool, brightness: float, deeplab: bool, image: Image.Image,
                mask: np.ndarray | None = None) -> Pair:
    """One image and its mask, transformed as `train_transform` says; it explains the arguments and result."""
    parts = [tv_tensors.Image(image)]  # uint8 until the last step, which is cheapest
    if mask is not None:
        parts.append(tv_tensors.Mask(mask))
    size = parts[0].shape[-2:]
    if resize_long or scales:
        if resize_long:
            factor = int(torch.randint(resize_long[0], resize_long[1] + 1, ())) / max(size)
        else:
            factor = _draw_factor(scales)
        if deeplab:
            size = [max(1, int(side * factor)) for side in size]
            parts[0] = functional.resize(parts[0], size, InterpolationMode.BILINEAR, antialias=False)
        else:
            size = [max(1, round(side * factor)) for side in size]
            parts[0] = functional.resize(parts[0], size, InterpolationMode.BICUBIC, antialias=True)
        if mask is not None:  # as Pillow does it; torchvision would take the label to the upper left
            labels = parts[1].as_subclass(Tensor)[None]
            labels = functional.resize(labels, size, InterpolationMode.NEAREST_EXACT)
            parts[1] = tv_tensors.Mask(labels[0])
    if flip and torch.rand(()) < 0.5:
        parts = [functional.horizontal_flip(part) for part in parts]
    if crop_size:
        height, width = parts[0].shape[-2:]
        rows = min(height, crop_size)
        columns = min(width, crop_size)
        # A random offset along each side: of the crop in a longer image, of a shorter image in the crop.
        y = int(torch.randint(abs(height - crop_size) + 1, ()))
        x = int(torch.randint(abs(width - crop_size) + 1, ()))
        if deeplab and height < crop_size:
            y = 0
        if deeplab and width < crop_size:
            x = 0
        above = y if height < crop_size else 0
        left = x if width < crop_size else 0
        parts = [functional.crop(part, y - above, x - left, rows, columns) for part in parts]
        if rows < crop_size or columns < crop_size:
            padding = [left, above, crop_size - columns - left, crop_size - rows - above]
            fills = (MEAN_COLOUR, IGNORE)
            parts = [functional.pad(part, padding, fill=fill) for part, fill in zip(parts, fills)]
    image = functional.to_dtype(parts[0].as_subclass(Tensor), torch.float32, scale=True).contiguous()
    if brightness:
        gain, shift = brightness * (2 * torch.rand(2) - 1)
        image = image.mul_(1 + gain).add_(shift / 4).clamp_(0, 1)
    return image, None if mask is None else parts[1].as_subclass(Tensor).long()


def _draw_factor(scales: tuple[float, ...]) -> float:
    """A factor between two scales, or one of another number of scales."""
    place = float(torch.rand(()))
    if len(scales) == 2:
        low, high = scales
        return low + (high - low) * place
    return scales[int(place * len(scales))]
