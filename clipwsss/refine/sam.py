"""SAM (Segment Anything, Kirillov et al., ICCV 2023) on a grid of points, filtered as in FMA-WSSS.

The network is that of the optional package `transformers`. For a point it gives three masks of rising level:
0 is a part of a part, 1 a part, 2 the whole. Its own filters are those of facebookresearch/segment-anything
(Apache 2.0): crops, stability, non-maximum suppression (NMS) of boxes, small regions. FMA-WSSS (arXiv
2312.03585, release HAL-42/FMA-WSSS, configs/VOC/sams and configs/COCO/sams) adds the treatment of levels.
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes, nms

from ..errors import InputError
from ..networks.resnet import IMAGENET_MEAN, IMAGENET_STD

CROP_OVERLAP = 512 / 1500  # of two neighbouring crops, as a share of the image's short side
EDGE = 20  # pixels; a mask whose box ends this close to the edge of a crop is cut off by it
SAME_BOX = 0.7  # boxes of a larger IoU are the same segment
EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


class Masks(NamedTuple):
    """S masks of one image.

    masks: bool [S,H,W]. levels: int64 [S], 0 to 2. ious: float32 [S], SAM's own estimate of each mask's
    quality. boxes: float32 [S,4], the first and last columns and rows of the mask (x0, y0, x1, y1).
    """
    masks: Tensor
    levels: Tensor
    ious: Tensor
    boxes: Tensor

    def take(self, which: Tensor) -> "Masks":
        """The masks that `which` selects: bool [S], or numbers in their new order."""
        return Masks(*(field[which] for field in self))


def load_sam(name: str, device: torch.device) -> nn.Module:
    """SAM by its name on the hub, such as facebook/sam-vit-huge, or from a folder of save_pretrained.

    InputError: not a SAM, or not readable. ModuleNotFoundError says how to install the package.
    """
    try:
        from transformers import AutoConfig, SamModel
    except ModuleNotFoundError:
        raise ModuleNotFoundError("segments by SAM need: pip install transformers") from None
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "sam":
            raise InputError(f"--sam {name}: is a model of type {kind}, not sam (facebook/sam-vit-huge)")
        model = SamModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        if Path(name).exists() or isinstance(error, InputError):
            raise InputError(f"--sam {name}: {str(error).splitlines()[0][:160]}") from error
        raise InputError(f"--sam {name}: no such folder, and no model of that name can be had from the hub "
                         f"({str(error).splitlines()[0][:120]})") from error
    return model.requires_grad_(False).eval().to(device)


def segment_image(model: nn.Module, pixels: np.ndarray, points_per_side: int = 32, points_per_batch: int = 64,
                  least_ious: tuple[float, float, float] = (0.86, 0.86, 0.76), least_stability: float = 0.92,
                  smallest_region: int = 100, most_covered: float = 0.3) -> Masks:
    """The segments of one image, uint8 [H, W, 3], as masks on the CPU; there may be none.

    SAM sees the whole image at points_per_side^2 points and each of four overlapping crops at a quarter as
    many. A mask stays if SAM's estimate of its IoU exceeds that of its level in `least_ious` (FMA-WSSS: 0.86,
    and 0.1 less for a whole), and if its stability is at least `least_stability`. NMS prefers wholes, and
    between crops the masks of smaller ones. Regions and holes below `smallest_region` pixels go. At last a
    mask is dropped that lies by `most_covered` or more in one of a higher level.
    """
    size = pixels.shape[:2]
    crops = crop_boxes(size)
    found = []
    areas = []
    for number, crop in enumerate(crops):
        points = point_grid(points_per_side if number == 0 else points_per_side // 2)
        masks = crop_masks(model, pixels, crop, points, points_per_batch, least_ious, least_stability)
        found.append(masks)
        areas += [box_area(crop)] * len(masks.levels)
    every = Masks(*(torch.cat(parts) for parts in zip(*found)))
    every = every.take(nms(every.boxes, 1 / torch.tensor(areas), SAME_BOX))
    every = without_small_regions(every, smallest_region)
    return without_covered(every, most_covered)


def point_grid(per_side: int) -> np.ndarray:
    """The centres (x, y) of per_side^2 equal cells of the unit square, [per_side^2, 2], row by row."""
    centres = (np.arange(per_side) + 0.5) / per_side
    x, y = np.meshgrid(centres, centres)
    return np.stack([x.ravel(), y.ravel()], 1)


def crop_boxes(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """The whole image of this size (H, W) and its four overlapping crops, as (x0, y0, x1, y1)."""
    height, width = size
    overlap = int(CROP_OVERLAP * min(size))
    crop_height = -(-(height + overlap) // 2)  # rounded up
    crop_width = -(-(width + overlap) // 2)
    boxes = [(0, 0, width, height)]
    for x in (0, crop_width - overlap):
        for y in (0, crop_height - overlap):
            boxes.append((x, y, min(x + crop_width, width), min(y + crop_height, height)))
    return boxes


def box_area(box: tuple[int, int, int, int]) -> float:
    """The area in pixels of a box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    return float((x1 - x0) * (y1 - y0))


def crop_masks(model: nn.Module, pixels: np.ndarray, crop: tuple[int, int, int, int], points: np.ndarray,
               points_per_batch: int, least_ious: tuple[float, float, float],
               least_stability: float) -> Masks:
    """The masks of one crop (x0, y0, x1, y1) at the points [P, 2] of its unit square, in the whole image."""
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = crop
    image, scaled_size = sam_image(pixels[y0:y1, x0:x1], model.config.vision_config.image_size)
    embedding = model.get_image_embeddings(image.to(model.device))
    places = torch.tensor(points * scaled_size[::-1], dtype=torch.float32, device=model.device)
    found = []
    for some in places.split(points_per_batch):
        answer = model(image_embeddings=embedding, input_points=some[None, :, None], multimask_output=True)
        logits, levels, ious = well_rated(answer.pred_masks[0], answer.iou_scores[0], least_ious)
        logits = enlarge(logits, image.shape[-1], scaled_size, (y1 - y0, x1 - x0))
        stable = stability(logits) >= least_stability
        masks = logits[stable] > 0
        boxes = masks_to_boxes(masks) + torch.tensor([x0, y0, x0, y0], device=masks.device)
        masks = F.pad(masks, (x0, width - x1, y0, height - y1))
        batch = Masks(masks.cpu(), levels[stable].cpu(), ious[stable].cpu(), boxes.cpu())
        found.append(batch.take(~cut_off(batch.boxes, crop, (height, width))))
    every = Masks(*(torch.cat(parts) for parts in zip(*found)))
    wholes_first = every.ious + (every.levels == 2).float()
    return every.take(nms(every.boxes, wholes_first, SAME_BOX))


def sam_image(pixels: np.ndarray, side: int) -> tuple[Tensor, tuple[int, int]]:
    """SAM's input [1,3,side,side] of uint8 pixels [H, W, 3], and the (H, W) that the image has in it.

    The image's long side becomes `side`; it is normalised and then padded by zeros at the right and bottom.
    """
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    scaled = (int(height * scale + 0.5), int(width * scale + 0.5))
    small = Image.fromarray(pixels).resize(scaled[::-1], Image.Resampling.BILINEAR)
    image = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
    image = (image - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return F.pad(image, (0, side - scaled[1], 0, side - scaled[0]))[None], scaled


def well_rated(logits: Tensor, ious: Tensor,
               least: tuple[float, float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Of the masks of P points, logits [P,3,h,w] and IoUs [P,3], those whose IoU exceeds their level's least.

    Returns their logits [M,h,w], levels [M] and IoUs [M].
    """
    good = ious > torch.tensor(least, device=ious.device)
    levels = torch.arange(3, device=ious.device).expand_as(ious)
    return logits[good], levels[good], ious[good]


def enlarge(logits: Tensor, side: int, scaled: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Logits [M,h,w] of SAM's square input at the image's size (H, W), which is `scaled` in the input."""
    logits = F.interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)
    logits = logits[..., :scaled[0], :scaled[1]]
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)[:, 0]


def stability(logits: Tensor, offset: float = 1.0) -> Tensor:
    """IoU [M] of the masks of logits [M,H,W] above `offset` and above -`offset`; NaN where both are empty."""
    inner = (logits > offset).sum((1, 2))
    outer = (logits > -offset).sum((1, 2))
    return inner / outer


def cut_off(boxes: Tensor, crop: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """Whether boxes [S,4] end near an edge of the crop that is not near the image's (H, W): bool [S]."""
    height, width = size
    near_crop = (boxes - torch.tensor(crop)).abs() <= EDGE
    near_image = (boxes - torch.tensor((0, 0, width, height))).abs() <= EDGE
    return (near_crop & ~near_image).any(1)


def without_small_regions(found: Masks, smallest: int) -> Masks:
    """The masks with small holes filled and small regions removed, and NMS that prefers masks without any."""
    if len(found.levels) == 0:
        return found
    masks = torch.stack([torch.from_numpy(tidy(mask.numpy(), smallest)) for mask in found.masks])
    unchanged = (masks == found.masks).flatten(1).all(1)
    large = masks.flatten(1).sum(1) >= smallest  # a mask of small regions alone keeps its largest
    boxes = masks_to_boxes(masks)
    kept = nms(boxes, (unchanged & large).float(), SAME_BOX)
    return found._replace(masks=masks, boxes=boxes).take(kept)


def tidy(mask: np.ndarray, smallest: int) -> np.ndarray:
    """A mask [H, W] without holes and regions of fewer than `smallest` pixels; its largest region stays."""
    holes, count = ndimage.label(~mask, EIGHT_NEIGHBOURS)
    small = np.bincount(holes.ravel(), minlength=count + 1) < smallest
    small[0] = False  # number 0 is the mask itself
    mask = mask | small[holes]
    regions, count = ndimage.label(mask, EIGHT_NEIGHBOURS)
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    sizes[0] = 0  # number 0 is what surrounds the mask
    large = sizes >= smallest
    large[sizes.argmax()] = True
    large[0] = False
    return large[regions]


def without_covered(found: Masks, most: float) -> Masks:
    """The masks by falling level, without those of which a share of `most` lies in one of a higher level.

    Source: FMA-WSSS' release, rock_sand_water. Only masks that stay cover others.
    """
    kept = found.take(found.levels == 2)
    for level in (1, 0):
        below = found.take(found.levels == level)
        if len(kept.levels) == 0:
            kept = below
            continue
        flat = below.masks.flatten(1).float()
        common = flat @ kept.masks.flatten(1).float().T
        covered = (common / flat.sum(1, keepdim=True)).amax(1)
        chosen = below.take(covered < most)
        kept = Masks(*(torch.cat(parts) for parts in zip(kept, chosen)))
    return kept
