"""Joint transforms of image and mask by torchvision v2's functions, all chance from torch's generator."""
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

IGNORE = 255
# Padding is ImageNet's mean colour in 8 bits, so that it is zero after a network's normalisation, as in IRN.
MEAN_COLOUR = [124, 116, 104]
Pair = tuple[Tensor, Tensor | None]


def train_transform(crop_size: int | None, resize_long: tuple[int, int] | None = (320, 640),
                    scales: tuple[float, float] | None = None, flip: bool = True,
                    brightness: float = 0.0) -> Callable[[Image.Image, np.ndarray | None], Pair]:
    """IRN's and CLIMS's training transform: random size, horizontal flip, crop; optionally brightness.

    resize_long draws the long side in pixels (both ends included); scales draws a factor instead. Images are
    resized by bicubic with antialiasing, masks by nearest. A side shorter than crop_size is padded with the
    mean colour (mask: 255), the image at a random place, as in IRN; crop_size None neither crops nor pads.
    brightness b multiplies by U(1 - b, 1 + b) and adds U(-b, b) / 4, clamped to [0, 1].
    The result maps (PIL RGB image, uint8 mask [H, W] or None) to (float32 [3, h, w] in [0, 1], int64 [h, w]
    or None).
    """
    if resize_long and scales:
        raise ValueError("give resize_long or scales, not both")
    return TrainTransform(crop_size, resize_long, scales, flip, brightness)


def eval_transform() -> Callable[[Image.Image, np.ndarray | None], Pair]:
    """The image at its own size as float32 [3, H, W] in [0, 1], the mask as int64 [H, W]."""
    return _plain


class TrainTransform:
    """The transform that `train_transform` describes (a class, so that worker processes can receive it)."""

    def __init__(self, crop_size, resize_long, scales, flip, brightness):
        self.crop_size, self.resize_long, self.scales = crop_size, resize_long, scales
        self.flip, self.brightness = flip, brightness

    def __call__(self, image: Image.Image, mask: np.ndarray | None = None) -> Pair:
        image, mask = _tensors(image, mask)
        size = self._random_size(*image.shape[-2:])
        if size != tuple(image.shape[-2:]):
            image = functional.resize_image(image, size, InterpolationMode.BICUBIC, antialias=True)
            mask = None if mask is None else functional.resize_mask(mask, size)
        if self.flip and torch.rand(()) < 0.5:
            image = functional.horizontal_flip_image(image)
            mask = None if mask is None else functional.horizontal_flip_mask(mask)
        if self.crop_size:
            image, mask = self._random_crop(image, mask)
        image, mask = _finish(image, mask)
        if self.brightness:
            gain, shift = self.brightness * (2 * torch.rand(2) - 1)
            image = image.mul_(1 + gain).add_(shift / 4).clamp_(0, 1)
        return image, mask

    def _random_size(self, height: int, width: int) -> tuple[int, int]:
        if self.resize_long:
            low, high = self.resize_long
            factor = int(torch.randint(low, high + 1, ())) / max(height, width)
        elif self.scales:
            low, high = self.scales
            factor = low + (high - low) * float(torch.rand(()))
        else:
            return height, width
        return max(1, round(height * factor)), max(1, round(width * factor))

    def _random_crop(self, image: Tensor, mask: Tensor | None) -> Pair:
        top, height, above, below = self._span(image.shape[-2])
        left, width, before, after = self._span(image.shape[-1])
        padding = [before, above, after, below]
        image = functional.crop_image(image, top, left, height, width)
        mask = None if mask is None else functional.crop_mask(mask, top, left, height, width)
        if any(padding):
            image = functional.pad_image(image, padding, fill=MEAN_COLOUR)
            mask = None if mask is None else functional.pad_mask(mask, padding, fill=IGNORE)
        return image, mask

    def _span(self, side: int) -> tuple[int, int, int, int]:
        """(start, length, padding before, padding after) of the crop along one side."""
        spare = side - self.crop_size
        offset = int(torch.randint(abs(spare) + 1, ()))
        return (offset, self.crop_size, 0, 0) if spare >= 0 else (0, side, offset, -spare - offset)


def _plain(image: Image.Image, mask: np.ndarray | None = None) -> Pair:
    return _finish(*_tensors(image, mask))


def _tensors(image: Image.Image, mask: np.ndarray | None) -> Pair:
    """Both as uint8 tensors; they stay bytes until the last step, which is cheapest."""
    return functional.pil_to_tensor(image), None if mask is None else torch.from_numpy(mask)[None]


def _finish(image: Tensor, mask: Tensor | None) -> Pair:
    image = functional.to_dtype_image(image, torch.float32, scale=True).contiguous()
    return image, None if mask is None else mask[0].long()
