"""CLIP's guidance of a map generator: masked regions encoded in one batch, adapters, the weighted terms."""
from pathlib import Path

import torch
import torch.nn.functional as F

from ..clip import CLIP, CLIP_RELEASE, is_archive, read_archive
from ..errors import InputError, input_errors
from ..files import load_weights, misfit_errors
from ..toy.clip import load_toy_clip
from ..weights import download


def load_clip(name: str, device: torch.device, cache: Path | None = None) -> CLIP:
    """A frozen CLIP in float32 and eval mode.

    name: a name of CLIP_RELEASE, which is downloaded once to `cache` (default: torch hub's checkpoint
    folder); the path of OpenAI's archive, of a state dict with the same names or of a toy CLIP; or `toy`, the
    tiny CLIP that ships with the toy world. InputError: a file that is missing, damaged or no CLIP.
    FileNotFoundError: a download that fails.
    """
    if name == "toy":
        return load_toy_clip().to(device)
    if name in CLIP_RELEASE:
        path = download(*CLIP_RELEASE[name], cache)
    else:
        path = Path(name).expanduser()
    if not path.is_file():
        valid = ", ".join(CLIP_RELEASE)
        raise InputError(f"{path} is neither a file nor a published CLIP ({valid})")
    if is_archive(path):
        with input_errors(f"{path}: "):
            state = read_archive(path)
    else:
        stored = load_weights(path)
        if "kind" in stored:
            return load_toy_clip(path).to(device)
        state = stored.get("state_dict", stored)
    with misfit_errors(path, "CLIP"):
        clip = CLIP.from_state_dict(state)
    return clip.requires_grad_(False).to(device)


def encode_regions(clip: CLIP, images: torch.Tensor, image_index: torch.Tensor, masks: torch.Tensor,
                   with_background: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Normalised features [N,D] of X*P and X*(1 - P) for N masks P [N,h,w] in [0,1].

    images [B,3,H,W] in [0,1], each mask's by `image_index` [N], go through CLIP at its own resolution in one
    batch; P multiplies the normalised image, so that a masked pixel has the mean colour (CLIMS eq. 3, POLE
    sec. 3.2, SemPLeS eq. 1). Not as CLIMS' release: CLIP's own normalisation, antialiasing, half-pixel grid.
    """
    size = (clip.input_resolution, clip.input_resolution)
    view = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    view = clip.normalise(view)[image_index]
    mask = F.interpolate(masks[:, None].float(), size, mode="bilinear", align_corners=False)
    regions = torch.cat([view * mask, view * (1 - mask)]) if with_background else view * mask
    features = F.normalize(clip.encode_image(regions, normalised=True).float(), dim=-1)
    return (*features.chunk(2),) if with_background else (features, None)
