"""CLIP's own maps of the classes that an image's tags name; nothing is trained.

A ViT tower gives CLIP-ES' maps (Lin et al., "CLIP is Also an Efficient Segmenter", CVPR 2023): GradCAM at the
last block, carried along the attention. A ResNet tower gives those of MaskCLIP (Zhou et al., ECCV 2022): the
shares of the texts at every position.
"""
import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader

from ..clip import CLIP
from ..distributed import barrier
from ..errors import InputError
from ..progress import Progress
from ..training import use_bf16
from .cam_files import CAM_STRIDE, write_cam
from .last_block import LastBlock
from .maps import min_max

PATCH_SCALES = (1.5, 2.0, 3.0)  # of a ResNet's input: its shorter side over CLIP's resolution
ATTENTION_BLOCKS = 8  # the last ones, whose attention carries a ViT's maps
# An attention has the square of their number. Of 16 pixels, VOC's images have up to 1,024 patches, COCO's
# up to 1,600, and a telephone's photographs 47,000. A ResNet's long images have many too: at three times its
# resolution, 500 x 20 pixels have 11,000.
MOST_PATCHES = 2400
EPSILON = 1e-7  # of CLIP-ES' scaling to [0, 1]


def clip_maps(clip: CLIP, images: Tensor, image_index: Tensor, text: Tensor, backgrounds: Tensor,
              box: float = 0.4, bf16: bool = False) -> Tensor:
    """CLIP's own maps [N,H,W] in [0,1], float32, of N pairs of an image and one of its classes.

    images [B,3,H,W] in [0,1]. image_index [N]: the pairs' images. text [N,D]: the pairs' normalised text
    features. backgrounds: normalised text features [M,D] for all pairs, or [N,M,D], each pair's own; M may be
    0. box: see `class_affinity`; a ResNet takes none. bf16: the image tower computes in bfloat16, all but a
    ViT's last block. A map without contrast is 0. InputError: an image tower that has no such maps.
    """
    height, width = images.shape[-2:]
    if hasattr(clip.visual, "attnpool"):
        return patch_maps(clip, images, image_index, text, backgrounds, bf16)
    if not hasattr(clip.visual, "class_embedding"):
        raise InputError("this CLIP's image tower is neither a ViT with a class token nor a ResNet with "
                         "attention pooling, so that it has no maps of its own; use another --clip")
    view = round_up(images, clip.visual.conv1.stride[0])
    maps, attention = grad_cam(clip, clip.normalise(view), image_index, text, backgrounds, bf16)
    refined = torch.zeros_like(maps)
    for index in image_index.unique().tolist():
        own = image_index == index
        refined[own] = class_affinity(maps[own], attention[index], box)
    return enlarged(min_max(refined, EPSILON), (height, width))


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [N,h,w] at an image's size (H, W), bilinear."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def class_shares(features: Tensor, image_index: Tensor, text: Tensor, backgrounds: Tensor,
                 scale: Tensor) -> Tensor:
    """Shares [N,P] of N pairs' texts at P positions: a softmax over the image's texts and the backgrounds.

    features [N,P,D]: normalised features of each pair's image; scale: of the cosines. For the rest see
    `clip_maps`.
    """
    rivals = torch.einsum("npd,md->npm", features, text)
    other_image = image_index[:, None] != image_index
    rivals = rivals.masked_fill(other_image[:, None], -math.inf)
    if backgrounds.ndim == 2:
        backgrounds = backgrounds.expand(len(text), -1, -1)
    behind = features @ backgrounds.transpose(1, 2)
    shares = (scale * torch.cat([rivals, behind], dim=2)).softmax(dim=2)
    return shares.diagonal(dim1=0, dim2=2).T


@torch.no_grad()
def patch_maps(clip: CLIP, images: Tensor, image_index: Tensor, text: Tensor, backgrounds: Tensor,
               bf16: bool = False) -> Tensor:
    """A ResNet tower's maps; see `clip_maps`.

    At each of PATCH_SCALES, the features of all positions go through the pool's value and output projections,
    without its attention. The mirror image is added. Views of more than MOST_PATCHES positions are made
    smaller.
    """
    height, width = images.shape[-2:]
    total = torch.zeros(len(text), height, width, device=images.device)
    for scale in PATCH_SCALES:
        factor = scale * clip.input_resolution / min(height, width)
        rows = max(1, round(height * factor / 32))
        columns = max(1, round(width * factor / 32))
        rows, columns = grid_within(rows, columns)
        size = (rows * 32, columns * 32)
        view = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        for mirrored in (False, True):
            seen = view.flip(-1) if mirrored else view
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                patches = clip.encode_image(seen, patches=True)
            patches = F.normalize(patches.float(), dim=-1)
            grid = patches.shape[1:3]
            patches = patches.flatten(1, 2)[image_index]
            shares = class_shares(patches, image_index, text, backgrounds, clip.logit_scale.exp())
            shares = shares.unflatten(1, grid)
            if mirrored:
                shares = shares.flip(-1)
            total += enlarged(shares, (height, width))
    return min_max(total, EPSILON)


def grid_within(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of patches, reduced in the same proportion where they exceed MOST_PATCHES."""
    if rows * columns <= MOST_PATCHES:
        return rows, columns
    reduction = math.sqrt(MOST_PATCHES / (rows * columns))
    rows = min(max(1, math.floor(rows * reduction)), MOST_PATCHES)
    columns = min(max(1, math.floor(columns * reduction)), MOST_PATCHES // rows)
    return rows, columns


def round_up(images: Tensor, patch: int) -> Tensor:
    """Images [B,3,H,W] in [0,1] whose sides are rounded up to multiples of the patch, as CLIP-ES reads them.

    Bicubic as Pillow's: first the width, then the height, each to 8 bits. Images of more than MOST_PATCHES
    are made smaller.
    """
    height, width = images.shape[-2:]
    rows, columns = grid_within(math.ceil(height / patch), math.ceil(width / patch))
    for size in ((height, columns * patch), (rows * patch, columns * patch)):
        if tuple(images.shape[-2:]) != size:
            resized = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
            images = (resized * 255).round().clamp(0, 255) / 255
    return images


@torch.no_grad()
def grad_cam(clip: CLIP, images: Tensor, image_index: Tensor, text: Tensor, backgrounds: Tensor,
             bf16: bool = False) -> tuple[Tensor, Tensor]:
    """CLIP-ES' maps before they are refined, [N,h,w] in [0,1], and each image's attention [B,hw,hw].

    images [B,3,H,W]: normalised, with sides that are multiples of the ViT's patch; for the rest see
    `clip_maps`. A pair's score is its share in the softmax over the image's texts and the backgrounds, of the
    mean of the patches' features. Its gradient at the last block's first norm, a mean over the patches,
    weighs the channels of that norm. The attention is the mean over the heads of the last blocks.
    """
    tower = clip.visual
    blocks = tower.transformer.resblocks
    grid = [side // tower.conv1.stride[0] for side in images.shape[-2:]]
    attention = images.new_zeros(len(images), 1 + math.prod(grid), 1 + math.prod(grid))
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        x = tower.embed(images.to(tower.conv1.weight.dtype))
        for number, block in enumerate(blocks[:-1], 1):
            if number <= len(blocks) - ATTENTION_BLOCKS:
                x = block(x)
            else:
                x, weights = block.with_weights(x)
                attention += weights
    last = copy.deepcopy(blocks[-1]).float()
    final_norm = copy.deepcopy(tower.ln_post).float()
    maps = torch.empty(len(text), *grid, device=x.device)
    for index in image_index.unique().tolist():
        own = image_index == index
        block = LastBlock(last, final_norm, x[index].float())
        attention[index] += block.attention
        behind = backgrounds if backgrounds.ndim == 2 else backgrounds[own]
        gradients = score_gradients(clip, block.mean, text[own], behind)
        maps[own] = F.relu(block.channel_weights(gradients) @ block.tokens[1:].T).unflatten(1, grid)
    attention = attention[:, 1:, 1:] / min(ATTENTION_BLOCKS, len(blocks))
    # The maps are tiny, so that EPSILON counts; the release scales them twice.
    return min_max(min_max(maps, EPSILON), EPSILON), attention


def score_gradients(clip: CLIP, mean: Tensor, text: Tensor, backgrounds: Tensor) -> Tensor:
    """Gradients [k,W] of the shares of an image's k texts at the patches' mean [W] before the projection."""
    with torch.enable_grad():
        means = mean.expand(len(text), -1).clone().requires_grad_(True)
        features = F.normalize(means @ clip.visual.proj.float(), dim=-1)[:, None]
        same_image = torch.zeros(len(text), dtype=torch.long, device=text.device)
        shares = class_shares(features, same_image, text, backgrounds, clip.logit_scale.exp())
        return torch.autograd.grad(shares.sum(), means)[0]


def class_affinity(maps: Tensor, attention: Tensor, box: float = 0.4) -> Tensor:
    """Maps [k,h,w] of an image, each carried along the attention [hw,hw] from the boxes of its bright parts.

    box: how bright a part is, over the map's maximum (0.4 on VOC, 0.7 on COCO). A box ends before the last
    row and column, as in the release; ours keeps a row or column that is the only one. Source: CLIP-ES'
    class-aware attention-based affinity.
    """
    balanced = attention
    for _ in range(3):  # Sinkhorn: rows and columns that sum to 1
        balanced = balanced / balanced.sum(dim=0, keepdim=True)
        balanced = balanced / balanced.sum(dim=1, keepdim=True)
    balanced = (balanced + balanced.T) / 2
    height, width = maps.shape[-2:]
    inside = torch.zeros_like(maps)
    for index, one in enumerate(maps.cpu().numpy()):
        level = (one * 255).astype(np.uint8)
        parts, _ = ndimage.label(level > int(box * level.max()), np.ones((3, 3)))
        for rows, columns in ndimage.find_objects(parts):
            bottom = min(rows.stop, max(1, height - 1))
            right = min(columns.stop, max(1, width - 1))
            inside[index, rows.start:bottom, columns.start:right] = 1
    start = (maps * inside).flatten(1)
    return (balanced @ (balanced @ start.T)).T.unflatten(1, (height, width))


def save_maps(folder: Path, name: str, keys: Tensor, maps: Tensor, fmt: str) -> None:
    """Write the CAM file of an image from maps [k,H,W] at its size; see `write_cam`."""
    size = [math.ceil(side / CAM_STRIDE) for side in maps.shape[-2:]]
    small = F.interpolate(maps[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    write_cam(folder, name, keys, small, fmt, None if fmt == "npz" else maps)


def write_clip_maps(clip: CLIP, loader: DataLoader, folder: Path,
                    text_of: Callable[[Sequence[str], Tensor], Tensor], backgrounds: Tensor,
                    box: float = 0.4, fmt: str = "npz", precision: str = "fp32") -> None:
    """Write the CAM file of each image of a loader with CLIP's own maps of the classes that its tags name.

    text_of(names, classes): text features [N,D] of N pairs of an image and a class [N]. backgrounds: [M,D]
    for all classes, or [K,M,D]. For the rest see `clip_maps` and `write_cams`.
    """
    device = clip.text_projection.device
    progress = Progress("CLIP's maps", sum(len(batch) for batch in loader.batch_sampler))
    for batch in loader:
        image_index, classes = batch.labels.to(device).nonzero(as_tuple=True)
        text = text_of([batch.names[i] for i in image_index.tolist()], classes)
        behind = backgrounds if backgrounds.ndim == 2 else backgrounds[classes]
        images = batch.images.to(device, non_blocking=True)
        maps = clip_maps(clip, images, image_index, text, behind, box, use_bf16(precision, device))
        for index, name in enumerate(batch.names):
            own = image_index == index
            save_maps(folder, name, classes[own].cpu(), maps[own].cpu(), fmt)
        progress.update(len(batch.names))
    progress.close()
    barrier()
