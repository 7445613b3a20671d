"""WeakTr's CAM generator: a plain vision transformer whose own attention, weighted by head, refines its CAMs.

Zhu et al., "WeakTr: Exploring plain vision transformer for weakly-supervised semantic segmentation", arXiv
2304.01184. SemPLeS fine-tunes it. The weights of both releases load under their own names.
"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import input_errors
from ..files import load_weights, load_weights_into, start_file
from ..networks import vit
from .maps import MapGenerator

POOLINGS = {"avg": torch.mean, "max": torch.amax}
FUSION = "adaptive_attention_fusion."  # how the names of the fusion's parameters begin
# WeakTr's commands: 4 and avg are its defaults and those of SemPLeS' file for COCO; 8 and max came later.
POOLING_OF_REDUCTION = {4: "avg", 8: "max"}


class WeakTrOutputs(NamedTuple):
    """What a batch gives: three logits [B,K] and two maps [B,K,h,w].

    The logits are those of the class tokens, of the coarse maps and of the fine maps. `coarse_maps` are the
    coarse maps times the class tokens' attention. `maps`, the fine ones, are these spread by the patches'
    attention.
    """
    token_logits: Tensor
    coarse_logits: Tensor
    fine_logits: Tensor
    coarse_maps: Tensor
    maps: Tensor


class Fusion(nn.Module):
    """Adaptive attention fusion: a weight in (0,1) for every head of every block.

    heads: the number C of heads of all blocks together. features: the channels of one head. hidden: the inner
    widths of the network over features and of the network over heads.
    """

    def __init__(self, heads: int, features: int, hidden: tuple[int, int], pooling: str):
        super().__init__()
        self.pool = POOLINGS[pooling]
        # Between the first two layers is no nonlinearity, as released.
        self.attn_feat_ffn = nn.Sequential(nn.Linear(features, hidden[0]), nn.Linear(hidden[0], 1))
        self.attn_head_ffn = nn.Sequential(nn.Linear(heads, hidden[1], bias=False), nn.ReLU(),
                                           nn.Linear(hidden[1], heads, bias=False), nn.Sigmoid())

    def forward(self, pooled: Tensor) -> Tensor:
        """Weights [B,C] from pooled features [B,C,features]."""
        return self.attn_head_ffn(self.attn_feat_ffn(pooled).squeeze(-1))


class WeakTr(MapGenerator, vit.VisionTransformer):
    """A transformer with class tokens, a 3x3 convolution on its patches, and the fusion.

    There is one class token for each class, in their order, unless config has `category_ids`. Then there are
    `n_tokens` of them, one for each of COCO's category numbers from 1 on, and `category_ids` are the numbers
    of the classes. All tokens take part in the attention; outputs are those of the classes.
    No gradient flows through the attention and its features. The fine logits teach the fusion alone (WeakTr);
    the fine maps teach the convolution too (SemPLeS' release, which tunes both: the part `head`).
    """
    from_minimum = True
    parts = {"head": ("head.", FUSION), "fusion": (FUSION,)}

    def __init__(self, spec: vit.ViTSpec, config: dict, hidden: tuple[int, int], drop_path: float = 0.0):
        n_classes = len(config["classes"])
        super().__init__(spec, config.get("n_tokens", n_classes), drop_path)
        self.config = config
        numbers = config.get("category_ids", range(1, n_classes + 1))
        self.register_buffer("token_of_class", torch.tensor(numbers) - 1, persistent=False)
        self.input_multiple = spec.patch
        self.norm.requires_grad_(False)  # WeakTr does not use it
        self.head = nn.Conv2d(spec.width, self.n_tokens, 3, padding=1)
        self.adaptive_attention_fusion = Fusion(spec.depth * spec.heads, spec.width // spec.heads, hidden,
                                                config["pooling"])

    def outputs(self, images: Tensor, detach: bool = False) -> WeakTrOutputs:
        """All outputs for images [B,3,H,W] in [0,1], in float32.

        detach: no gradient flows from the fine maps to the coarse ones, so that they teach the fusion alone.
        """
        tokens, grid = self.embed(images)
        entered = []  # the tokens before each block
        pooled = []  # what each block's attention added, [B,heads,features]
        for block in self.blocks:
            entered.append(tokens.detach())
            tokens, attended = block(tokens)
            pooled.append(self.pool_by_head(attended.detach()))
        class_tokens, patches = tokens.split([self.n_tokens, tokens.shape[1] - self.n_tokens], dim=1)
        class_tokens = class_tokens[:, self.token_of_class]
        coarse = self.head(patches.mT.unflatten(-1, grid))[:, self.token_of_class].float()
        # The fusion's order is that of the release: all blocks of the first head, then of the second, ...
        weights = self.adaptive_attention_fusion(torch.stack(pooled, dim=2).flatten(1, 2))
        weights = weights.unflatten(1, (self.spec.heads, -1))
        to_patches = self.fused_attention(entered, weights)[..., self.n_tokens:]
        from_classes = to_patches[:, self.token_of_class].unflatten(-1, grid)
        from_patches = to_patches[:, self.n_tokens:]
        coarse_maps = from_classes * F.relu(coarse.detach() if detach else coarse)
        maps = (from_patches @ coarse_maps.flatten(2).mT).mT.unflatten(-1, grid).float()
        return WeakTrOutputs(token_logits=class_tokens.float().mean(-1), coarse_logits=coarse.mean((2, 3)),
                             fine_logits=maps.mean((2, 3)), coarse_maps=coarse_maps, maps=maps)

    def pool_by_head(self, attended: Tensor) -> Tensor:
        """[B,heads,width/heads] of what a block's attention added, [B,N,width], pooled over the tokens.

        As released, the channels after the projection go to the heads in turn: with two heads, the channels
        0, 2, 4, ... to the first and 1, 3, 5, ... to the second.
        """
        pooled = self.adaptive_attention_fusion.pool(attended, dim=1)
        return pooled.unflatten(-1, (-1, self.spec.heads)).mT

    def fused_attention(self, entered: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Mean over the heads of all blocks of attention times weight: [B,N,N], N the number of all tokens.

        entered: the tokens before each block. weights: [B,heads,depth]. Without gradients only one head's
        attention is in memory at a time.
        """
        weights = weights.float() / weights[0].numel()
        fused = 0.0
        for index, (block, tokens) in enumerate(zip(self.blocks, entered)):
            with torch.no_grad():
                query, key = block.queries(tokens)
            for head in range(self.spec.heads):
                with torch.no_grad():
                    attention = vit.attention_weights(query[:, head], key[:, head]).float()
                fused = fused + weights[:, head, index, None, None] * attention
        return fused

    def forward(self, images: Tensor) -> Tensor:
        """The fine maps [B,K,h,w], none negative; without gradients one image at a time, to save memory."""
        parts = [images] if torch.is_grad_enabled() else images.split(1)
        return torch.cat([self.outputs(part).maps for part in parts])

    def classify(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.outputs(images, detach=True)
        return {"token": outputs.token_logits, "coarse": outputs.coarse_logits, "fine": outputs.fine_logits}

    def parameter_groups(self, lr: float, head_ratio: float = 1.0) -> list[dict]:
        body = []
        head = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                group = head if name.startswith(self.parts["head"]) else body
                group.append(parameter)
        return [{"params": body, "lr": lr}, {"params": head, "lr": lr * head_ratio}]


def build_weaktr(classes: Sequence[str], backbone: str = "deit_small", weights: str | Path = "imagenet",
                 pooling: str = "max", reduction: int = 8, drop_path: float = 0.1) -> WeakTr:
    """A generator on one of vit.TRANSFORMERS.

    weights: `imagenet` (DeiT's), `none` or a file with DeiT's names. pooling: `max` or `avg` of what the
    attention added, over the tokens. reduction: the number of all heads over the fusion's inner width.
    drop_path: see `VisionTransformer`. InputError: weights that do not fit. FileNotFoundError: a download
    that fails.
    """
    spec = vit.VIT_SPECS[backbone]
    hidden = (spec.width // spec.heads // 8, spec.depth * spec.heads // reduction)
    config = {"backbone": backbone, "pooling": pooling, "classes": list(classes)}
    generator = WeakTr(spec, config, hidden, drop_path)
    if str(weights) != "none":
        path = start_file(weights, backbone, vit.VIT_WEIGHTS)
        stored = load_weights(path)
        with input_errors(f"{path}: "):
            state = vit.adapt_weights(generator, stored.get("model", stored))
        load_weights_into(generator, state, path, backbone)
    return generator


def rebuild_weaktr(state: Mapping[str, Tensor], classes: Sequence[str], backbone: str = "deit_small",
                   pooling: str = "max", reduction: int | None = None, drop_path: float = 0.1,
                   category_ids: Sequence[int] = ()) -> WeakTr:
    """A generator for the weights `state`, whose shapes give its sizes; it has random weights itself.

    `backbone` is only a name here. reduction: what `pooling` belongs to. If the shapes tell the other one of
    WeakTr's two, the pooling is that of WeakTr's files of this width, and a line says so; None keeps
    `pooling`. category_ids: COCO's numbers of the classes. The releases' files for COCO have a class token
    for each number from 1 to 90, of which 80 are classes; such a file gives the classes' outputs.
    ValueError: a tensor that tells the sizes is missing, or weights of another number of classes.
    """
    for name in (FUSION + "attn_feat_ffn.0.weight", FUSION + "attn_head_ffn.0.weight",
                 "patch_embed.proj.weight", "cls_token", "pos_embed"):
        if name not in state:
            raise ValueError(f"not the weights of WeakTr; {name} is missing")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    feature_hidden = len(state[FUSION + "attn_feat_ffn.0.weight"])
    head_hidden, heads = state[FUSION + "attn_head_ffn.0.weight"].shape
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    n_tokens = state["cls_token"].shape[1]
    grid = round((state["pos_embed"].shape[1] - n_tokens) ** 0.5)
    spec = vit.ViTSpec(width, len(blocks), heads // len(blocks), patch, grid)
    told = heads // head_hidden
    if reduction not in (None, told) and POOLING_OF_REDUCTION.get(told, pooling) != pooling:
        pooling = POOLING_OF_REDUCTION[told]
        print(f"the generator's file has a reduction of {told}, not {reduction}: its fusion pools by "
              f"{pooling}, as in WeakTr's files of that width")
    config = {"backbone": backbone, "pooling": pooling, "classes": list(classes)}
    if n_tokens != len(classes):
        if n_tokens < max(category_ids, default=n_tokens + 1):
            raise ValueError(f"made for {n_tokens} classes; this data has {len(classes)}: "
                             f"{', '.join(classes)}")
        config["n_tokens"] = n_tokens
        config["category_ids"] = list(category_ids)
    return WeakTr(spec, config, (feature_hidden, head_hidden), drop_path)


def find_weaktr_weights(stored: Mapping) -> Mapping[str, Tensor] | None:
    """The weights of WeakTr's or SemPLeS' checkpoint; None for another file."""
    state = stored.get("model", stored)
    if isinstance(state, Mapping) and FUSION + "attn_head_ffn.0.weight" in state:
        return state
    return None
