"""Mask2Former as a segmenter, through the optional package `transformers`.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022; the network of
SemPLeS' best results. The network, its matching and its losses are those of `transformers`; this module adds
labels, normalisation and the start.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .deeplab import IGNORE
from .resnet import IMAGENET_MEAN, IMAGENET_STD

# Ends of the names of parameters that do not decay, beside those of norms. In mmsegmentation they are called
# absolute_pos_embed, relative_position_bias_table, query_embed, query_feat and level_embed. Its pixel
# decoder's level_encoding, which is decoder.level_embed here, decays.
WITHOUT_DECAY = ("embeddings.position_embeddings", "relative_position_bias_table", "queries_embedder.weight",
                 "queries_features.weight", "transformer_module.level_embed.weight")
MULTIPLE = 32  # of pixels, to which the sides of images are padded (size_divisor in mmsegmentation)
DROP_PATH = 0.3  # of the Swin backbone in training, mmsegmentation's value


class Mask2Former(nn.Module):
    """images [B,3,H,W] in [0,1] -> logits [B,n_labels,H,W], logarithms of semantic scores."""
    label_layers = ("model.class_predictor.", "model.criterion.empty_weight")  # rows: labels, "no object"

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        # The norm of the backbone's unused classifier gets no gradient; several processes would wait for it.
        for name, module in model.named_modules():
            if name.endswith(("pixel_level_module.encoder.layernorm", "encoder.swin.layernorm")):
                module.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The logarithm of the sum over queries of P(label | query) * P(pixel in the query's mask).

        The label "no object" is left out. Images are padded by the mean colour at the right and bottom.
        Masks are enlarged to the padded size, and cut to the image's, before the sum. A softmax over the
        labels turns the result into scores that sum to one.
        """
        height, width = images.shape[-2:]
        padded = F.pad((images - self.mean) / self.std, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        queries = self.model(pixel_values=padded)
        masks = F.interpolate(queries.masks_queries_logits, padded.shape[-2:], mode="bilinear",
                              align_corners=False)[..., :height, :width]
        labels = queries.class_queries_logits.softmax(-1)[..., :-1]
        return torch.einsum("bqn,bqhw->bnhw", labels, masks.sigmoid()).clamp_min(1e-6).log()

    def loss_terms(self, images: Tensor, masks: Tensor, balanced: bool = False) -> dict[str, tuple]:
        """The network's own loss as {"mask2former": (1, loss, 1)}.

        Each label in the masks [B,H,W] is one target; ignored pixels (255) belong to none. The count is 1,
        because `transformers` itself divides the loss by the number of targets. InputError with `balanced`.
        """
        if balanced:
            raise InputError("--balanced weights a cross entropy; mask2former has a loss of its own")
        labels = [item[item != IGNORE].unique() for item in masks]
        targets = [(mask == item[:, None, None]).float() for mask, item in zip(masks, labels)]
        result = self.model(pixel_values=(images - self.mean) / self.std, mask_labels=targets,
                            class_labels=labels)
        return {"mask2former": (1.0, result.loss, 1)}

    def parameter_groups(self, lr: float, weight_decay: float, head_ratio: float = 10.0) -> list[dict]:
        """Optimiser groups: the backbone at `lr`, everything else at `head_ratio` times it.

        Norms, position tables, queries and the decoder's level embedding have no weight decay; biases have.
        Source: mmsegmentation's configuration of Mask2Former with Swin.
        """
        norms = set()
        for name, module in self.model.named_modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                norms |= {f"{name}.weight", f"{name}.bias"}
        groups = {}
        for name, parameter in self.model.named_parameters():
            in_backbone = "pixel_level_module.encoder." in name
            without_decay = name in norms or name.endswith(WITHOUT_DECAY)
            key = (in_backbone, without_decay)
            if key not in groups:
                groups[key] = {"params": [], "lr": lr if in_backbone else head_ratio * lr,
                               "weight_decay": 0.0 if without_decay else weight_decay}
            groups[key]["params"].append(parameter)
        return list(groups.values())


def build_mask2former(n_labels: int, weights: str, model: dict | None = None) -> Mask2Former:
    """The network from `weights`, or without weights from `model`, the settings of another one.

    weights: the name of a model on the hub, or a folder of save_pretrained, of a whole Mask2Former or of a
    Swin backbone alone (an ImageNet one: a Mask2Former trained on ADE20K or COCO has seen masks); a folder
    that has a config.json alone (random weights); or none. Both forms of weights are read, safetensors and
    pytorch_model.bin, from which no code is run. InputError: weights that cannot be read.
    ModuleNotFoundError says how to install the package.
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
        settings = Mask2FormerConfig.from_dict(model) if model else Mask2FormerConfig()
        settings.num_labels = n_labels
        return Mask2Former(Network(settings))
    folder = Path(weights)
    stored = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    config_alone = (folder / "config.json").is_file() and not stored
    try:
        settings = AutoConfig.from_pretrained(weights)
        if settings.model_type == "swin":
            stages = [f"stage{number}" for number in range(1, len(settings.depths) + 1)]
            settings.out_features = stages
            settings.drop_path_rate = DROP_PATH
            network = Network(Mask2FormerConfig(backbone_config=settings, num_labels=n_labels))
            if not config_alone:
                network.model.pixel_level_module.encoder = SwinBackbone.from_pretrained(
                    weights, out_features=stages, weights_only=True)
        elif config_alone:
            network = Network(Mask2FormerConfig.from_pretrained(weights, num_labels=n_labels))
        else:
            network = Network.from_pretrained(weights, num_labels=n_labels, ignore_mismatched_sizes=True,
                                              weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"--weights {weights}: {reason}") from error
    return Mask2Former(network)
