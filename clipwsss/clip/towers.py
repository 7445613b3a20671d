"""CLIP's transformer and its two image towers, under OpenAI's parameter names.

The names and sizes of the parameters are those of OpenAI's release (github.com/openai/CLIP), so that its
weights load. What cannot reach a tower's output vector is not computed.
"""
import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClipAttention(nn.Module):
    """Multi-head self-attention with the parameter names of nn.MultiheadAttention, batch first."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width ** -0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, causal: bool = False, first_only: bool = False) -> Tensor:
        """x [B,L,W] -> [B,L,W], or [B,1,W], the first token alone, with `first_only`."""
        width = x.shape[-1]
        if first_only:
            query = F.linear(x[:, :1], self.in_proj_weight[:width], self.in_proj_bias[:width])
            key, value = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        else:
            query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(self.split(query), self.split(key), self.split(value),
                                               is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B,L,W] -> (what `forward` gives, the weights of its attention, mean over the heads [B,L,L]).

        One image after another, because every head's weights live at once.
        """
        query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        query = self.split(query) * (query.shape[-1] // self.heads) ** -0.5
        mixed = []
        means = []
        for q, k, v in zip(query, self.split(key), self.split(value)):
            weights = (q @ k.transpose(-1, -2)).softmax(dim=-1)
            mixed.append(weights @ v)
            means.append(weights.mean(dim=0))
        return self.out_proj(torch.stack(mixed).transpose(1, 2).flatten(2)), torch.stack(means)

    def split(self, x: Tensor) -> Tensor:
        """x [..,L,W] as [..,heads,L,W/heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class ResidualBlock(nn.Module):
    """Pre-norm transformer block with `hidden` channels between its two last layers.

    quick_gelu: x sigmoid(1.702 x), as OpenAI's models were trained, in place of GELU.
    """

    def __init__(self, width: int, heads: int, hidden: int, quick_gelu: bool):
        super().__init__()
        self.quick_gelu = quick_gelu
        self.attn = ClipAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, causal: bool = False, first_only: bool = False) -> Tensor:
        attended = self.attn(self.ln_1(x), causal, first_only)
        return self.feed((x[:, :1] if first_only else x) + attended)

    def with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B,L,W] -> (what `forward` gives, the attention's weights [B,L,L])."""
        attended, weights = self.attn.with_weights(self.ln_1(x))
        return self.feed(x + attended), weights

    def feed(self, x: Tensor) -> Tensor:
        """The second half of the block, which treats every token by itself."""
        return x + self.mlp.c_proj(self.activate(self.mlp.c_fc(self.ln_2(x))))

    def activate(self, hidden: Tensor) -> Tensor:
        """GELU, or QuickGELU as a SiLU: one pass over memory less than x sigmoid(1.702 x)."""
        if not self.quick_gelu:
            return F.gelu(hidden)
        return F.silu(1.702 * hidden, inplace=True).div_(1.702)


class Transformer(nn.Module):
    """A stack of blocks; with `first_only` the last block computes the first token alone."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int, quick_gelu: bool):
        super().__init__()
        blocks = [ResidualBlock(width, heads, hidden, quick_gelu) for _ in range(layers)]
        self.resblocks = nn.ModuleList(blocks)
        for block in self.resblocks:
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * layers * width) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(2 * layers * width) ** -0.5)

    def forward(self, x: Tensor, causal: bool = False, first_only: bool = False) -> Tensor:
        for block in self.resblocks[:-1]:
            x = block(x, causal)
        return self.resblocks[-1](x, causal, first_only)


class ViTTower(nn.Module):
    """The ViT tower: normalised images [B,3,H,W] -> [B,D], or [B,h,w,D] with `patches`.

    Both are tokens after the final norm and projection: the class token, or every patch's token. H and W are
    multiples of the patch size.
    """

    def __init__(self, resolution: int, patch_size: int, width: int, layers: int, embed_dim: int,
                 heads: int, hidden: int, quick_gelu: bool):
        super().__init__()
        scale = width ** -0.5
        grid = resolution // patch_size
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(grid ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, hidden, quick_gelu)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, images: Tensor, patches: bool = False) -> Tensor:
        x = self.ln_post(self.transformer(self.embed(images), first_only=not patches)) @ self.proj
        if patches:
            return x[:, 1:].unflatten(1, [side // self.conv1.stride[0] for side in images.shape[-2:]])
        return x[:, 0]

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images [B,3,H,W] -> the tokens before the first block [B,1+h*w,W], the class's first."""
        embedded = self.conv1(images)
        positions = self.positions(embedded.shape[-2:])
        embedded = embedded.flatten(2).transpose(1, 2)
        first = self.class_embedding.to(embedded.dtype).expand(len(images), 1, -1)
        return self.ln_pre(torch.cat([first, embedded], dim=1) + positions)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings [1+h*w,W]: those of the weights, resized (bilinear) for another grid (h, w)."""
        side = math.isqrt(len(self.positional_embedding) - 1)
        if tuple(grid) == (side, side):
            return self.positional_embedding
        first = self.positional_embedding[:1]
        stored = self.positional_embedding[1:].T.reshape(1, -1, side, side)
        resized = F.interpolate(stored, tuple(grid), mode="bilinear", align_corners=False)
        return torch.cat([first, resized.flatten(2)[0].T])


class PooledBottleneck(nn.Module):
    """A residual bottleneck whose strides are average poolings before the next convolution."""

    def __init__(self, in_channels: int, planes: int, stride: int):
        super().__init__()
        out_channels = 4 * planes
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.bn3.weight)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(OrderedDict([
                ("-1", nn.AvgPool2d(stride) if stride > 1 else nn.Identity()),
                ("0", nn.Conv2d(in_channels, out_channels, 1, bias=False)),
                ("1", nn.BatchNorm2d(out_channels))]))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(self.avgpool(out)))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


class AttentionPool(nn.Module):
    """Attention pooling [B,C,h,w] -> [B,D] with a single query, the mean of all positions.

    A single query needs no projected keys and values. q.(W_k x + b_k) = (W_k' q).x + const, and the constant
    leaves the softmax unchanged; W_v is applied to the weighted mean. This takes 4 C^2 products instead of
    (2 h w + 4) C^2.
    """

    def __init__(self, grid: int, channels: int, heads: int, embed_dim: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(grid ** 2 + 1, channels) * channels ** -0.5)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embed_dim)
        for layer in (self.k_proj, self.q_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=channels ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
        query = self.q_proj(x[:, 0]).unflatten(-1, (self.heads, -1))
        key_weight = self.k_proj.weight.unflatten(0, (self.heads, -1))
        value_weight = self.v_proj.weight.unflatten(0, (self.heads, -1))
        looked_for = torch.einsum("bhd,hdc->bhc", query * query.shape[-1] ** -0.5, key_weight)
        pooled = (looked_for @ x.transpose(1, 2)).softmax(dim=-1) @ x
        values = torch.einsum("bhc,hdc->bhd", pooled, value_weight).flatten(1) + self.v_proj.bias
        return self.c_proj(values)


class ResNetTower(nn.Module):
    """The ResNet tower: normalised images [B,3,R,R] -> [B,D], or [B,3,H,W] -> [B,H/32,W/32,D] with `patches`.

    The stem has three convolutions, and attention pools the last map. `patches` gives every position of that
    map through the pool's value and output projections (MaskCLIP, ECCV 2022).
    """

    def __init__(self, resolution: int, layers: tuple[int, ...], width: int, embed_dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        channels = width
        for level, count in enumerate(layers):
            planes = width * 2 ** level
            first = PooledBottleneck(channels, planes, stride=1 if level == 0 else 2)
            channels = 4 * planes
            rest = [PooledBottleneck(channels, planes, stride=1) for _ in range(count - 1)]
            self.add_module(f"layer{level + 1}", nn.Sequential(first, *rest))
        self.attnpool = AttentionPool(resolution // 32, channels, heads=width * 32 // 64, embed_dim=embed_dim)

    def forward(self, images: Tensor, patches: bool = False) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.avgpool(x)))))
        if patches:
            return self.attnpool.c_proj(self.attnpool.v_proj(x.permute(0, 2, 3, 1)))
        return self.attnpool(x)
