"""What frozen CLIP sees of an image: the part that a class's map covers, and the part that it leaves."""
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cams.maps import MapGenerator, min_max
from ..cams.cam_files import check_cam, read_cam, resize_cam
from ..clip import (CLIP, CLIP_RELEASE, VOCABULARY, Kind, architecture, find_kind, is_archive, misfit,
                    read_archive)
from ..datasets import Batch
from ..errors import InputError, input_errors
from ..files import download, load_weights, misfit_errors
from ..networks.resnet import IMAGENET_MEAN, IMAGENET_STD
from ..toy.clip import load_toy_clip

CLIP_VIEWS = ("release", "clip")  # see `clip_view`


class Regions(NamedTuple):
    """A batch's N pairs of an image and one of its classes, and what CLIP sees of them.

    names [N]: each pair's image; classes [N]. probabilities P [B,K,h,w] of the batch, in [0,1]; present
    [N,h,w]: P of the pairs. foreground, background [N,D]: normalised features of X * P and X * (1 - P).
    """
    names: list[str]
    classes: Tensor
    probabilities: Tensor
    present: Tensor
    foreground: Tensor
    background: Tensor | None


def load_clip(name: str, device: torch.device, cache: Path | None = None,
              model: str | None = None) -> CLIP:
    """A frozen CLIP in float32 and eval mode.

    name: a name of CLIP_RELEASE or of open_clip's weights (see `find_kind`), which is downloaded once to
    `cache` (default: torch hub's checkpoint folder); the path of OpenAI's archive, of a state dict with the
    same names or of a toy CLIP; or `toy`, the tiny CLIP that ships with the toy world. model: name of the
    kind of CLIP in a file. InputError: a file that is missing, damaged or no CLIP, whose kind is not given
    and cannot be known, or whose texts are for another tokenizer. FileNotFoundError: a download that fails.
    """
    path = Path(name).expanduser()
    kind = None
    if model:
        if name == "toy" or name in CLIP_RELEASE or not path.is_file():
            raise InputError(f"--clip-model {model}: only a file needs it, and --clip {name} names none")
        with input_errors("--clip-model: "):
            kind = find_kind(model)
    if name == "toy":
        return load_toy_clip().to(device)
    if name in CLIP_RELEASE:
        path = download(*CLIP_RELEASE[name], cache)
        is_openais = True
    elif path.is_file():
        is_openais = is_archive(path)
    else:
        kind, path = download_open_clip(name, cache)
        is_openais = False
    if is_archive(path):
        with input_errors(f"{path}: "):
            state = read_archive(path)
    else:
        stored = load_weights(path)
        if "kind" in stored:
            return load_toy_clip(path).to(device)
        state = stored.get("state_dict", stored)
    is_openais = is_openais or "input_resolution" in state  # a size that OpenAI's state dicts hold
    with misfit_errors(path, "CLIP"):
        if kind is not None:
            clip = CLIP.from_state_dict(state, kind.quick_gelu)
        elif is_openais:
            clip = CLIP.from_state_dict(state)
        else:  # any activation shows whether the file holds a CLIP at all
            clip = CLIP.from_state_dict(state, quick_gelu=True)
    if clip.token_embedding.num_embeddings > VOCABULARY:
        raise InputError(f"{path}: the vocabulary has {clip.token_embedding.num_embeddings} tokens, and that "
                         f"of OpenAI's tokenizer, the only one here, has {VOCABULARY}: CLIPs of another "
                         "tokenizer are not read")
    if kind is None and not is_openais:
        raise InputError(f"{path}: tensors do not tell the activation of a CLIP; name its kind by "
                         "--clip-model, for example ViT-B-16/laion2b_s34b_b88k, ViT-B-16 or "
                         "ViT-B-16-quickgelu as in open_clip, or ViT-B/16 for OpenAI's")
    if kind is not None:
        if reason := misfit(kind, architecture(state)):
            raise InputError(f"{path}: {reason}; change --clip-model")
        clip.set_colours(kind.pixel_mean, kind.pixel_std)
    return clip.requires_grad_(False).to(device)


def download_open_clip(name: str, cache: Path | None) -> tuple[Kind, Path]:
    """The kind and the file of open_clip's weights of this name; InputError: neither a name nor a file."""
    try:
        kind = find_kind(name)
    except ValueError as error:
        valid = ", ".join(CLIP_RELEASE)
        raise InputError(f"{name} is neither a file nor a published CLIP ({valid}, or open_clip's weights "
                         f"such as ViT-B-16/laion2b_s34b_b88k): {error}") from error
    if not kind.url:
        raise InputError(f"{name} is neither a file nor a published CLIP, but a model of open_clip; name "
                         "its weights, for example ViT-B-16/laion2b_s34b_b88k, or a file and --clip-model "
                         f"{name}")
    print(f"CLIP: {kind.name}")
    file_name = kind.name.replace("/", "-") + Path(kind.url).suffix
    return kind, download(kind.url, kind.sha256, cache, file_name)


def clip_view(clip: CLIP, images: Tensor, view: str) -> Tensor:
    """Images [B,3,H,W] in [0,1] as the input of CLIP's image tower: normalised, at its own resolution.

    view: `clip` resizes with antialiasing and normalises by the mean and deviation of CLIP's training.
    `release` does as the training code of CLIMS, POLE and SemPLeS: ImageNet's mean and deviation, corners
    aligned, no antialiasing.
    """
    size = (clip.input_resolution, clip.input_resolution)
    if view == "release":
        mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
        deviation = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
        return F.interpolate((images - mean) / deviation, size, mode="bilinear", align_corners=True)
    return clip.normalise(F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True))


def enlarge(clip: CLIP, maps: Tensor, view: str) -> Tensor:
    """Maps [N,h,w] at the resolution of CLIP's input; the `release` view aligns their corners."""
    size = (clip.input_resolution, clip.input_resolution)
    corners = view == "release"
    return F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=corners)[:, 0]


def encode_regions(clip: CLIP, images: Tensor, image_index: Tensor, masks: Tensor,
                   with_background: bool = True, view: str = "clip") -> tuple[Tensor, Tensor | None]:
    """Normalised features [N,D] of X * P and X * (1 - P) for N masks P [N,h,w] in [0,1].

    images [B,3,H,W] in [0,1]; image_index [N] is each mask's image. view: see `clip_view`. All go through
    CLIP in one batch. P multiplies the normalised image, so that a masked pixel has the mean colour (CLIMS
    eq. 3, POLE sec. 3.2, SemPLeS eq. 1).
    """
    seen = clip_view(clip, images, view)[image_index]
    mask = enlarge(clip, masks, view)[:, None]
    regions = seen * mask
    if with_background:
        regions = torch.cat([regions, seen * (1 - mask)])
    features = F.normalize(clip.encode_image(regions, normalised=True).float(), dim=-1)
    if not with_background:
        return features, None
    foreground, background = features.chunk(2)
    return foreground, background


def generator_regions(generator: MapGenerator, clip: CLIP, batch: Batch, map_scale: str,
                      epsilon: float = 0.1, view: str = "clip") -> Regions:
    """The regions of a batch by the generator's present maps.

    map_scale: how P comes from maps, `sigmoid` (CLIMS, POLE) or `minmax` (SemPLeS) of their positive part;
    epsilon is that of `minmax`. view: see `clip_view`.
    """
    maps = generator(batch.images.contiguous(memory_format=torch.channels_last))
    if map_scale == "sigmoid":
        probabilities = torch.sigmoid(maps)
    else:  # the maps that SemPLeS' release scales are not negative
        probabilities = min_max(F.relu(maps), epsilon)
    image_index, classes = batch.labels.nonzero(as_tuple=True)
    present = probabilities[image_index, classes]
    masks = present
    if map_scale == "minmax":  # SemPLeS' release scales them at the size that CLIP sees
        masks = min_max(enlarge(clip, F.relu(maps[image_index, classes]), view), epsilon)
    foreground, background = encode_regions(clip, batch.images, image_index, masks, view=view)
    names = [batch.names[i] for i in image_index.tolist()]
    return Regions(names, classes, probabilities, present, foreground, background)


def cam_file_regions(clip: CLIP, cams: Path, batch: Batch, device: torch.device,
                     with_background: bool = True, resized: bool = False, view: str = "clip") -> Regions:
    """The regions of a batch of whole images by their CAM files, whatever made those.

    resized: the images do not have their stored size, so that the files' sizes are not compared with it.
    view: see `clip_view`. InputError names a CAM file that is missing, damaged or of another image.
    """
    size = tuple(batch.images.shape[-2:])
    maps = torch.zeros(*batch.labels.shape, *size)
    for index, name in enumerate(batch.names):
        cam = read_cam(cams, name)
        if not resized:
            tags = batch.labels[index].nonzero()[:, 0].tolist()
            check_cam(cam, cams / name, size, batch.labels.shape[1], tags)
        maps[index, torch.from_numpy(cam.keys)] = torch.from_numpy(resize_cam(cam, size))
    images = batch.images.to(device)
    maps = maps.to(device)
    image_index, classes = batch.labels.to(device).nonzero(as_tuple=True)
    present = maps[image_index, classes]
    foreground, background = encode_regions(clip, images, image_index, present, with_background, view)
    names = [batch.names[i] for i in image_index.tolist()]
    return Regions(names, classes, maps, present, foreground, background)
