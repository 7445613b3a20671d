"""Mask2Former as a segmenter, through the optional package `transformers`.

Cheng et al., CVPR 2022; SemPLeS' headline network. The network, its matching and its losses are the
package's; here are labels, normalisation and file.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .deeplab import IGNORE
from .resnet import IMAGENET_MEAN, IMAGENET_STD


class Mask2Former(nn.Module):
    """images [B,3,H,W] in [0,1] -> logits [B,n_labels,H,W], logarithms of semantic scores."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        for name, module in model.named_modules():  # a classifier's norm: no loss reaches it, processes wait
            if name.endswith(("pixel_level_module.encoder.layernorm", "encoder.swin.layernorm")):
                module.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """log of the sum over queries of P(label | query) * P(pixel in its mask), "no object" left out.

        Masks are enlarged before the sum. A softmax over labels makes scores that sum to one of it.
        """
        queries = self.model(pixel_values=(images - self.mean) / self.std)
        masks = F.interpolate(queries.masks_queries_logits, images.shape[-2:], mode="bilinear",
                              align_corners=False)
        labels = queries.class_queries_logits.softmax(-1)[..., :-1]
        return torch.einsum("bqn,bqhw->bnhw", labels, masks.sigmoid()).clamp_min(1e-6).log()

    def loss_terms(self, images: Tensor, masks: Tensor, balanced: bool = False) -> dict[str, tuple]:
        """The network's own loss as {"mask2former": (1, loss, 1)}.

        Each label of masks [B,H,W] is one target; ignored pixels (255) are in none. The package transformers
        divides by the number of targets itself.
        """
        if balanced:
            raise InputError("--balanced is a cross entropy; mask2former has its own loss")
        labels = [item[item != IGNORE].unique() for item in masks]
        targets = [(mask == item[:, None, None]).float() for mask, item in zip(masks, labels)]
        result = self.model(pixel_values=(images - self.mean) / self.std, mask_labels=targets,
                            class_labels=labels)
        return {"mask2former": (1.0, result.loss, 1)}

    def parameter_groups(self, lr: float, weight_decay: float, head_ratio: float = 10.0) -> list[dict]:
        """The backbone at 1x, everything else at 10x; norms, biases and embeddings without weight decay."""
        groups = {}
        for name, parameter in self.model.named_parameters():
            inner = "pixel_level_module.encoder." in name
            plain = parameter.dim() <= 1 or "embed" in name or "queries_features" in name
            group = groups.setdefault((inner, plain), {"params": [], "lr": lr if inner else head_ratio * lr,
                                                       "weight_decay": 0.0 if plain else weight_decay})
            group["params"].append(parameter)
        return list(groups.values())


def build(n_labels: int, weights: str, model: dict | None = None) -> Mask2Former:
    """The network from `weights`, or with no weights from `model`, the settings of another.

    weights: a hub model's name or a folder of save_pretrained, of a whole Mask2Former or of a Swin backbone
    alone (ImageNet's: a Mask2Former trained on ADE20K or COCO has seen masks); a folder with a config.json
    alone (random); or none. ModuleNotFoundError says how to install the package.
    """
    try:
        from transformers import AutoConfig, Mask2FormerConfig, SwinBackbone
        from transformers import Mask2FormerForUniversalSegmentation as Network
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--network mask2former needs: pip install transformers") from None
    if weights == "imagenet":
        raise InputError("--weights imagenet: mask2former starts from a model of transformers, such as "
                         "microsoft/swin-large-patch4-window12-384-in22k, or none")
    if weights == "none":
        settings = Mask2FormerConfig.from_dict(model) if model else Mask2FormerConfig(num_labels=n_labels)
        return Mask2Former(Network(settings))
    stored = not (Path(weights) / "config.json").is_file() or any(Path(weights).glob("*.safetensors"))
    try:
        settings = AutoConfig.from_pretrained(weights)
        if settings.model_type == "swin":
            stages = [f"stage{number}" for number in range(1, len(settings.depths) + 1)]
            settings.out_features = stages
            network = Network(Mask2FormerConfig(backbone_config=settings, num_labels=n_labels))
            if stored:
                network.model.pixel_level_module.encoder = SwinBackbone.from_pretrained(
                    weights, out_features=stages, use_safetensors=True)
        elif stored:
            network = Network.from_pretrained(weights, num_labels=n_labels, ignore_mismatched_sizes=True,
                                              use_safetensors=True)
        else:
            network = Network(Mask2FormerConfig.from_pretrained(weights, num_labels=n_labels))
        return Mask2Former(network)
    except (OSError, ValueError) as error:
        raise InputError(f"--weights {weights}: {str(error).splitlines()[0][:160]}") from error
