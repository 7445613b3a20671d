"""Plain vision transformers under DeiT's published parameter names (a leaf module).

Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; Touvron et al., "Training data-efficient image
transformers", ICML 2021. The networks take images in [0, 1] and normalise them themselves.
"""
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# DeiT's ImageNet weights: URL and the first digits of the SHA-256.
VIT_WEIGHTS = {
    "deit_small": ("https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth", "cd65a155"),
}


class ViTSpec(NamedTuple):
    """Shape of a network: channels, blocks, heads, side of a patch in pixels, side of the position grid."""
    width: int
    depth: int
    heads: int
    patch: int = 16
    grid: int = 14


VIT_SPECS = {
    "deit_small": ViTSpec(384, 12, 6),
    "deit_toy": ViTSpec(64, 3, 4, patch=8, grid=12),
}
TRANSFORMERS = tuple(VIT_SPECS)
# How the names of a transformer's parameters begin.
TRANSFORMER_PARTS = ("cls_token", "pos_embed", "patch_embed", "blocks", "norm")


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values [B,heads,N,width/heads] of tokens [B,N,width]."""
        return self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(*self.split(tokens))
        return self.proj(mixed.transpose(1, 2).flatten(2))


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """Softmax attention [..,N,N] of queries (rows) to keys (columns), both [..,N,width/heads]."""
    return (query * query.shape[-1] ** -0.5 @ key.mT).softmax(dim=-1)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): training zeroes an image's branch with probability `rate`.

    branch: what a block adds to the tokens, [B,N,width]. What is kept is divided by 1 - rate, so that the
    mean stays the same.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = torch.empty((len(branch), 1, 1), dtype=branch.dtype, device=branch.device)
        kept.bernoulli_(1 - self.rate).div_(1 - self.rate)
        return branch * kept


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to the tokens through `DropPath`."""

    def __init__(self, width: int, heads: int, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B,N,width] after the block, and what the attention added to them."""
        attended = self.attn(self.norm1(tokens))
        tokens = tokens + self.drop_path(attended)
        hidden = F.gelu(self.mlp["fc1"](self.norm2(tokens)))
        return tokens + self.drop_path(self.mlp["fc2"](hidden)), attended

    def queries(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B,heads,N,width/heads] of tokens [B,N,width], for `attention_weights`."""
        query, key, _ = self.attn.split(self.norm1(tokens))
        return query, key


class VisionTransformer(nn.Module):
    """Tokens [B,n_tokens+h*w,width] of images [B,3,H,W] in [0,1], after the final norm, class tokens first.

    h and w are H and W divided by the side of a patch, rounded down: the pixels that remain at the right and
    the bottom are not seen. Positions are resized to that grid as DINO and WeakTr do it.
    drop_path: the rate of `DropPath` in the last block. It grows linearly from 0 in the first block (DeiT).
    """

    def __init__(self, spec: ViTSpec, n_tokens: int = 1, drop_path: float = 0.0):
        super().__init__()
        self.spec = spec
        self.n_tokens = n_tokens
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, spec.width, spec.patch, stride=spec.patch)})
        self.cls_token = nn.Parameter(torch.empty(1, n_tokens, spec.width))
        self.pos_embed = nn.Parameter(torch.empty(1, n_tokens + spec.grid ** 2, spec.width))
        rates = torch.linspace(0, drop_path, spec.depth).tolist()
        self.blocks = nn.ModuleList(Block(spec.width, spec.heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(spec.width, eps=1e-6)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Class tokens and patches [B,N,width] with positions, before the first block; the grid (h, w)."""
        patches = self.patch_embed["proj"]((images - self.mean) / self.std)
        grid = (patches.shape[2], patches.shape[3])
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).mT], dim=1)
        return tokens + self.positions(grid), grid

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings [1,n_tokens+h*w,width] of a grid (h, w), resized from the stored grid."""
        own, patches = self.pos_embed.split([self.n_tokens, self.spec.grid ** 2], dim=1)
        if grid == (self.spec.grid, self.spec.grid):
            return self.pos_embed
        patches = patches.mT.unflatten(-1, (self.spec.grid, self.spec.grid))
        # 0.1 keeps the size from being rounded down. It also moves the samples a little, as DINO does.
        factors = [(side + 0.1) / self.spec.grid for side in grid]
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic")
        return torch.cat([own, patches.flatten(2).mT], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        tokens, _ = self.embed(images)
        for block in self.blocks:
            tokens, _ = block(tokens)
        return self.norm(tokens)


def adapt_weights(network: VisionTransformer, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DeiT's weights as a state dict for this network.

    Each of the network's class tokens becomes a copy of DeiT's one, positions are resized to the network's
    grid, and DeiT's classifier is left out. Parameters that are no part of a transformer keep their values.
    ValueError: the state dict has not DeiT's names.
    """
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        if name not in state:
            raise ValueError(f"not the weights of a vision transformer with DeiT's names: {name} is missing")
    class_position = state["pos_embed"][:, :1]
    positions = state["pos_embed"][:, 1:]
    stored_grid = round(positions.shape[1] ** 0.5)
    if stored_grid != network.spec.grid:
        positions = positions.mT.unflatten(-1, (stored_grid, stored_grid))
        positions = F.interpolate(positions, (network.spec.grid, network.spec.grid), mode="bicubic")
        positions = positions.flatten(2).mT
    adapted = {name: value for name, value in network.state_dict().items()
               if name.split(".")[0] not in TRANSFORMER_PARTS}
    for name, value in state.items():
        if name.split(".")[0] in TRANSFORMER_PARTS:
            adapted[name] = value
    adapted["cls_token"] = state["cls_token"].expand(-1, network.n_tokens, -1)
    adapted["pos_embed"] = torch.cat([class_position.expand(-1, network.n_tokens, -1), positions], dim=1)
    return adapted
