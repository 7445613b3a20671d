"""One batch of guided training: regions under frozen CLIP, and what each stage asks of them."""
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..clip import CLIP
from ..datasets import Batch
from . import losses
from .losses import Suppression, Weights
from .prompts import LearnedPrompt, Prompt
from .regions import encode_regions


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
    """A map generator under frozen CLIP."""
    generator: nn.Module
    clip: CLIP

    def regions(self, batch: Batch) -> Regions:
        """The batch's regions by the generator's present maps."""
        images = batch.images.contiguous(memory_format=torch.channels_last)
        probabilities = torch.sigmoid(self.generator(images))
        pairs = batch.labels.nonzero(as_tuple=True)
        foreground, background = encode_regions(self.clip, batch.images, probabilities, pairs)
        return Regions([batch.names[i] for i in pairs[0].tolist()], pairs[1], probabilities,
                       probabilities[pairs], foreground, background)


class TuneStep(NamedTuple):
    """Trains the generator: CLIMS' OTM and BTM, POLE eq. 5, SemPLeS eqs. 1 and 3, and CLIMS' CBS and REG.

    adapters: of images and of texts (POLE eqs. 7-8). area_of: REG is over `all` classes or the `present`.
    """
    guide: Guide
    class_prompt: Prompt
    background_prompt: Prompt
    adapters: tuple[nn.Module, nn.Module]
    weights: Weights
    suppression: Suppression = Suppression()
    area_of: str = "all"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        names, classes, probabilities, present, foreground, background = self.guide.regions(batch)
        image_side, text_side = self.adapters
        text = text_side(self.class_prompt(names, classes, foreground))
        repelled = self.background_prompt(names, classes)
        return losses.weighted({
            "fg": losses.attract(losses.similarity(image_side(foreground), text)),
            "bg": losses.repel(losses.similarity(image_side(background), text)),
            "suppress": losses.suppress(losses.similarity(foreground, repelled), *self.suppression),
            "area": losses.area(present if self.area_of == "present" else probabilities),
        }, self.weights)


class LearnClassStep(NamedTuple):
    """Learns class prompts with the generator fixed: POLE eq. 5 on the prompts' side."""
    guide: Guide
    prompt: LearnedPrompt
    weights: Weights

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            regions = self.guide.regions(batch)
        text = self.prompt.features()[regions.classes]
        return losses.weighted({
            "fg": losses.attract(losses.similarity(regions.foreground, text)),
            "bg": losses.repel(losses.similarity(regions.background, text)),
        }, self.weights)


class PromptWeights(NamedTuple):
    """Weights of SemPLeS eq. 2: attraction to the image's background, repulsion from the class's text."""
    image: float = 1.0
    text: float = 0.02


class LearnBackgroundStep(NamedTuple):
    """Learns background prompts with the generator fixed (SemPLeS eq. 2).

    They are attracted to (1 - P)X and repelled from the class's text, class_text [K,D].
    """
    guide: Guide
    prompt: LearnedPrompt
    class_text: Tensor
    weights: PromptWeights

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            regions = self.guide.regions(batch)
        text, present = self.prompt.features(), regions.classes.unique()
        return losses.weighted({
            "image": losses.attract(losses.similarity(regions.background, text[regions.classes])),
            "text": losses.repel(losses.similarity(self.class_text[present], text[present])),
        }, self.weights)


LearnStep = LearnClassStep | LearnBackgroundStep
