"""One batch of guided training: regions under frozen CLIP, and what each stage asks of them.

Terms are means over a batch's pairs; `weight_of` makes a process's mean its part of that over all processes.
"""
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..cams.base import MapGenerator
from ..clip import CLIP
from ..datasets import Batch
from . import losses
from .prompts import LearnedPrompt, Prompt
from .regions import encode_regions


PROMPT_EPSILON = 1e-4  # of minmax while prompts are learned (SemPLeS' release)


class Regions(NamedTuple):
    """A batch's N pairs of image and present class, and what CLIP sees of them.

    names [N] of their images; classes [N]; probabilities P [B,K,h,w]; present P of the pairs [N,h,w];
    foreground and background [N,D]: normalised features of X*P and X*(1 - P).
    """
    names: list[str]
    classes: Tensor
    probabilities: Tensor
    present: Tensor
    foreground: Tensor
    background: Tensor


class Guide(NamedTuple):
    """A map generator under frozen CLIP. map_scale: how P comes from its maps, by `probabilities`."""
    generator: MapGenerator
    clip: CLIP
    map_scale: str = "sigmoid"

    @property
    def device(self) -> torch.device:
        return self.clip.text_projection.device

    def regions(self, batch: Batch, epsilon: float = 0.1) -> Regions:
        """The batch's regions by the generator's present maps; `epsilon` is that of `minmax`."""
        maps = self.generator(batch.images.contiguous(memory_format=torch.channels_last))
        probabilities = self.generator.probabilities(maps, self.map_scale, epsilon)
        pairs = batch.labels.nonzero(as_tuple=True)
        masks = present = probabilities[pairs]
        if self.map_scale == "minmax":  # CLIP sees the extremes of maps at its own size
            size = (self.clip.input_resolution,) * 2
            masks = self.generator.probabilities(maps[pairs][:, None], "minmax", epsilon, size)[:, 0]
        foreground, background = encode_regions(self.clip, batch.images, pairs[0], masks)
        return Regions([batch.names[i] for i in pairs[0].tolist()], pairs[1], probabilities, present,
                       foreground, background)


class Regional(Protocol):
    """What gives a batch's regions: a Guide, or CAM files in its place (given.GivenGuide)."""

    def regions(self, batch: Batch, epsilon: float) -> Regions: ...


class TuneStep(NamedTuple):
    """Trains the generator: CLIMS' OTM and BTM, POLE eq. 5, SemPLeS eqs. 1 and 3, and CLIMS' CBS and REG.

    adapters: of images and of texts (POLE eqs. 7-8). area_of: REG is over `all` classes or the `present`.
    """
    guide: Guide
    class_prompt: Prompt
    background_prompt: Prompt
    adapters: tuple[nn.Module, nn.Module]
    weights: dict[str, float]
    threshold: float = 0.0
    reduction: str = "mean"
    area_of: str = "all"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        names, classes, probabilities, present, foreground, background = self.guide.regions(batch)
        image_side, text_side = self.adapters
        text = text_side(self.class_prompt(names, classes, foreground))
        repelled = self.background_prompt(names, classes)
        fg = losses.attract(losses.similarity(image_side(foreground), text))
        bg = losses.repel(losses.similarity(image_side(background), text))
        suppressed = losses.suppress(losses.similarity(foreground, repelled), self.threshold)
        covered = present if self.area_of == "present" else probabilities
        return {"fg": (self.weights["fg"], fg.sum(), len(fg)),
                "bg": (self.weights["bg"], bg.sum(), len(bg)),
                "suppress": (self.weights["suppress"], suppressed.sum(),
                             None if self.reduction == "sum" else len(suppressed)),
                "area": (self.weights["area"], covered.sum(), covered.numel())}


class LearnClassStep(NamedTuple):
    """Learns class prompts with the generator fixed: POLE eq. 5 on the prompts' side."""
    guide: Regional
    prompt: LearnedPrompt
    weights: dict[str, float]

    def __call__(self, batch: Batch) -> dict[str, tuple]:
        with torch.no_grad():
            regions = self.guide.regions(batch, PROMPT_EPSILON)
        text = self.prompt.features()[regions.classes]
        fg = losses.attract(losses.similarity(regions.foreground, text))
        bg = losses.repel(losses.similarity(regions.background, text))
        return {"fg": (self.weights["fg"], fg.sum(), len(fg)), "bg": (self.weights["bg"], bg.sum(), len(bg))}


class PromptWeights(NamedTuple):
    """Weights of SemPLeS eq. 2: attraction to the image's background, repulsion from the class's text."""
    image: float = 1.0
    text: float = 0.02


class LearnBackgroundStep(NamedTuple):
    """Learns background prompts with the generator fixed (SemPLeS eq. 2).

    They are attracted to (1 - P)X and repelled from the class's text, class_text [K,D], by -log(1 - s) as the
    `paper` has it or by +log s as its `release` does; both are means over pairs.
    """
    guide: Regional
    prompt: LearnedPrompt
    class_text: Tensor
    weights: PromptWeights
    repulsion: str = "paper"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            regions = self.guide.regions(batch, PROMPT_EPSILON)
        text = self.prompt.features()[regions.classes]
        alike = losses.similarity(self.class_text[regions.classes], text)
        image = losses.attract(losses.similarity(regions.background, text))
        text = losses.repel(alike) if self.repulsion == "paper" else -losses.attract(alike)
        return {"image": (self.weights.image, image.sum(), len(image)),
                "text": (self.weights.text, text.sum(), len(text))}


LearnStep = LearnClassStep | LearnBackgroundStep
