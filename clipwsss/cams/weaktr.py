"""WeakTr's CAM generator: a plain vision transformer whose attention, weighted by head, fills its CAMs.

Zhu et al., "WeakTr: Exploring plain vision transformer for weakly-supervised semantic segmentation", arXiv
2304.01184. SemPLeS fine-tunes it. Files of both releases load by their names.
"""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import input_errors
from ..networks import vit
from .base import GeneratorSettings, MapGenerator

POOLS = {"avg": torch.mean, "max": torch.amax}
FUSION = "adaptive_attention_fusion."


class WeakTrOutputs(NamedTuple):
    """What a batch gives: three logits [B,K] (of the class tokens, the coarse and the fine maps) and two maps
    [B,K,h,w]: the coarse ones under the class tokens' attention, then spread by the patches' attention."""
    token_logits: Tensor
    coarse_logits: Tensor
    fine_logits: Tensor
    coarse_maps: Tensor
    maps: Tensor


class Fusion(nn.Module):
    """Adaptive attention fusion: a weight in (0,1) for every head of every block, from what the blocks added.

    heads: of all blocks together, C; features: channels of one; hidden: widths inside, of features and heads.
    """

    def __init__(self, heads: int, features: int, hidden: tuple[int, int], pooling: str):
        super().__init__()
        self.pool = POOLS[pooling]
        # No nonlinearity between the first two, as released.
        self.attn_feat_ffn = nn.Sequential(nn.Linear(features, hidden[0]), nn.Linear(hidden[0], 1))
        self.attn_head_ffn = nn.Sequential(nn.Linear(heads, hidden[1], bias=False), nn.ReLU(),
                                           nn.Linear(hidden[1], heads, bias=False), nn.Sigmoid())

    def forward(self, pooled: Tensor) -> Tensor:
        """Weights [B,C] from pooled features [B,C,features]."""
        return self.attn_head_ffn(self.attn_feat_ffn(pooled).squeeze(-1))


class WeakTr(MapGenerator, vit.VisionTransformer):
    """The transformer with a class token for each class, a 3x3 convolution on its patches, and the fusion.

    Attention and its features take no gradient. The coarse maps take none from the fine logits (WeakTr), and
    one from the maps (SemPLeS' release, which tunes the convolution and the fusion: the part `head`).
    """
    from_minimum = True
    parts = {"head": ("head.", FUSION), "fusion": (FUSION,)}

    def __init__(self, spec: vit.ViTSpec, config: dict, hidden: tuple[int, int], drop_path: float = 0.0):
        super().__init__(spec, len(config["classes"]), drop_path)
        self.config, self.input_multiple = config, spec.patch
        self.norm.requires_grad_(False)  # WeakTr does not use it
        self.head = nn.Conv2d(spec.width, self.n_tokens, 3, padding=1)
        self.adaptive_attention_fusion = Fusion(spec.depth * spec.heads, spec.width // spec.heads, hidden,
                                                config["pooling"])

    def outputs(self, images: Tensor, detach: bool = False) -> WeakTrOutputs:
        """Everything of images [B,3,H,W] in [0,1], in float32; `detach`: fine maps teach the fusion alone."""
        (tokens, grid), entered, pooled = self.embed(images), [], []
        for block in self.blocks:
            entered.append(tokens.detach())
            tokens, attended = block(tokens)
            pooled.append(self.pool_by_head(attended.detach()))
        class_tokens, patches = tokens.split([self.n_tokens, tokens.shape[1] - self.n_tokens], dim=1)
        coarse = self.head(patches.mT.unflatten(-1, grid)).float()
        # Heads outside, blocks inside, as in the release.
        weights = self.adaptive_attention_fusion(torch.stack(pooled, dim=2).flatten(1, 2))
        weights = weights.unflatten(1, (self.spec.heads, -1))
        fused = self.fused_attention(entered, weights)[..., self.n_tokens:]
        seen = fused[:, :self.n_tokens].unflatten(-1, grid) * F.relu(coarse.detach() if detach else coarse)
        maps = (fused[:, self.n_tokens:] @ seen.flatten(2).mT).mT.unflatten(-1, grid).float()
        return WeakTrOutputs(class_tokens.float().mean(-1), coarse.mean((2, 3)), maps.mean((2, 3)), seen, maps)

    def pool_by_head(self, attended: Tensor) -> Tensor:
        """[B,heads,width/heads] of what a block's attention added, [B,N,width], pooled over the tokens.

        As released: the channels after the projection are dealt out to the heads by turns.
        """
        pooled = self.adaptive_attention_fusion.pool(attended, dim=1)
        return pooled.unflatten(-1, (-1, self.spec.heads)).mT

    def fused_attention(self, entered: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Mean over the heads of all blocks of attention times weight [B,heads,depth]: [B,N,N], N all tokens.

        `entered` are the tokens that each block was given. Without gradients one head's attention is held at
        a time.
        """
        fused, weights = 0.0, weights.float() / weights[0].numel()
        for index, (block, tokens) in enumerate(zip(self.blocks, entered)):
            with torch.no_grad():
                query, key = block.queries(tokens)
            for head in range(self.spec.heads):
                with torch.no_grad():
                    attention = vit.attention_weights(query[:, head], key[:, head]).float()
                fused = fused + weights[:, head, index, None, None] * attention
        return fused

    def forward(self, images: Tensor) -> Tensor:
        """The fine maps [B,K,h,w], none negative; without gradients an image at a time, to hold less."""
        parts = [images] if torch.is_grad_enabled() else images.split(1)
        return torch.cat([self.outputs(part).maps for part in parts])

    def classify(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.outputs(images, detach=True)
        return {"token": outputs.token_logits, "coarse": outputs.coarse_logits, "fine": outputs.fine_logits}

    def parameter_groups(self, lr: float, head_ratio: float = 1.0) -> list[dict]:
        named = [(name.startswith(self.parts["head"]), parameter)
                 for name, parameter in self.named_parameters() if parameter.requires_grad]
        return [{"params": [parameter for new, parameter in named if not new], "lr": lr},
                {"params": [parameter for new, parameter in named if new], "lr": lr * head_ratio}]


def build(classes: Sequence[str], settings: GeneratorSettings) -> WeakTr:
    """A generator with these settings; InputError on weights that do not fit."""
    spec = vit.SPECS[settings.backbone]
    hidden = (spec.width // spec.heads // 8, spec.depth * spec.heads // settings.reduction)
    config = {"backbone": settings.backbone, "pooling": settings.pooling, "classes": list(classes)}
    generator = WeakTr(spec, config, hidden, settings.drop_path)
    if settings.weights != "none":
        with input_errors():
            vit.start_from(generator, vit.read_weights(settings.weights, settings.backbone), settings.weights)
    return generator


def rebuild(config: dict, state: Mapping[str, Tensor], classes: Sequence[str],
            settings: GeneratorSettings) -> WeakTr:
    """The network whose shapes a file's weights have; `settings` say the pooling that its config does not."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    hidden, heads = state[FUSION + "attn_head_ffn.0.weight"].shape
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    n_classes = state["cls_token"].shape[1]
    if n_classes != len(classes):
        raise ValueError(f"made for {n_classes} classes; this data has {len(classes)}: {', '.join(classes)}")
    grid = round((state["pos_embed"].shape[1] - n_classes) ** 0.5)
    spec = vit.ViTSpec(width, depth, heads // depth, patch, grid)
    config = {"backbone": "deit_small", "pooling": settings.pooling, **config, "classes": list(classes)}
    return WeakTr(spec, config, (len(state[FUSION + "attn_feat_ffn.0.weight"]), hidden), settings.drop_path)


def published(stored: Mapping) -> Mapping[str, Tensor] | None:
    """The weights of WeakTr's or SemPLeS' checkpoint; None for another file."""
    state = stored.get("model", stored)
    return state if isinstance(state, Mapping) and FUSION + "attn_head_ffn.0.weight" in state else None
