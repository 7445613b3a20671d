"""CLIP: an image tower and a text transformer under OpenAI's parameter names, built from the weights' shapes.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021. The names
and sizes of the parameters are those of OpenAI's release (github.com/openai/CLIP), so that its weights load.
What cannot reach a tower's output vector is not computed.
"""
import math
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
# What OpenAI's archives store beside the weights, and constants that tracing turns into attributes.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "pixel_mean", "pixel_std")


class Architecture(NamedTuple):
    """Sizes of a CLIP; vision_layers: a ViT's depth, or a ResNet's numbers of blocks (with no patch size)."""
    embed_dim: int
    image_resolution: int
    vision_layers: int | tuple[int, ...]
    vision_width: int
    vision_patch_size: int | None
    context_length: int
    vocab_size: int
    text_width: int
    text_heads: int
    text_layers: int


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
        query = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B,heads,L,W/heads]
        key = key.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        value = value.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class ResidualBlock(nn.Module):
    """Pre-norm transformer block with QuickGELU, x sigmoid(1.702 x), as OpenAI's models were trained."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = ClipAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, causal: bool = False, first_only: bool = False) -> Tensor:
        attended = self.attn(self.ln_1(x), causal, first_only)
        x = (x[:, :1] if first_only else x) + attended
        hidden = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class Transformer(nn.Module):
    """A stack of blocks; with `first_only` the last block computes the first token alone."""

    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads) for _ in range(layers))
        for block in self.resblocks:
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * layers * width) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(2 * layers * width) ** -0.5)

    def forward(self, x: Tensor, causal: bool = False, first_only: bool = False) -> Tensor:
        for block in self.resblocks[:-1]:
            x = block(x, causal)
        return self.resblocks[-1](x, causal, first_only)


class ViTTower(nn.Module):
    """The ViT tower: normalised images [B,3,R,R] -> [B,D], or [B,h,w,D] with `patches`.

    Both are tokens after the final norm and projection: the class token, or every patch's token.
    """

    def __init__(self, resolution: int, patch_size: int, width: int, layers: int, embed_dim: int):
        super().__init__()
        scale = width ** -0.5
        grid = resolution // patch_size
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(grid ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads=width // 64)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, images: Tensor, patches: bool = False) -> Tensor:
        embedded = self.conv1(images)
        grid = embedded.shape[-2:]
        embedded = embedded.flatten(2).transpose(1, 2)
        first = self.class_embedding.to(embedded.dtype).expand(len(images), 1, -1)
        x = self.ln_pre(torch.cat([first, embedded], dim=1) + self.positional_embedding)
        x = self.ln_post(self.transformer(x, first_only=not patches)) @ self.proj
        if patches:
            return x[:, 1:].unflatten(1, grid)
        return x[:, 0]


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
    """The ResNet tower: normalised images [B,3,R,R] -> [B,D], or [B,R/32,R/32,D] with `patches`.

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


class CLIP(nn.Module):
    """Image and text encoders into one space of D dimensions; features are not normalised to unit length."""

    def __init__(self, sizes: Architecture):
        super().__init__()
        self.input_resolution = sizes.image_resolution
        self.context_length = sizes.context_length
        if isinstance(sizes.vision_layers, int):
            self.visual = ViTTower(sizes.image_resolution, sizes.vision_patch_size, sizes.vision_width,
                                   sizes.vision_layers, sizes.embed_dim)
        else:
            self.visual = ResNetTower(sizes.image_resolution, sizes.vision_layers, sizes.vision_width,
                                      sizes.embed_dim)
        self.transformer = Transformer(sizes.text_width, sizes.text_layers, sizes.text_heads)
        self.token_embedding = nn.Embedding(sizes.vocab_size, sizes.text_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(sizes.context_length, sizes.text_width))
        self.ln_final = nn.LayerNorm(sizes.text_width)
        self.text_projection = nn.Parameter(
            torch.randn(sizes.text_width, sizes.embed_dim) * sizes.text_width ** -0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            values = torch.tensor(values, device="cpu").view(3, 1, 1)  # cpu: real even when built on meta
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "CLIP":
        """The model whose sizes the tensors' shapes tell, with a float32 copy of the weights, in eval mode.

        ValueError: a tensor that tells the sizes is missing. RuntimeError of load_state_dict: other tensors
        are missing, unknown or of another shape.
        """
        weights = {}
        for name, value in state.items():
            if name.rpartition(".")[2] not in NOT_WEIGHTS:
                dtype = torch.float32 if value.is_floating_point() else value.dtype
                weights[name] = value.to(dtype, copy=True)
        try:
            sizes = architecture(weights)
        except KeyError as missing:
            raise ValueError(f"these are no CLIP weights: tensor {missing} is missing") from None
        with torch.device("meta"):
            model = cls(sizes)
        model.load_state_dict(weights, assign=True)
        return model.eval()

    def normalise(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1] with CLIP's mean subtracted, divided by its standard deviation."""
        return (images - self.pixel_mean) / self.pixel_std

    def encode_image(self, images: Tensor, normalised: bool = False, patches: bool = False) -> Tensor:
        """Images [B,3,R,R] in [0,1] -> features [B,D].

        normalised: the images come from `normalise`. patches: one feature for every position of the tower's
        last grid instead, [B,h,w,D]. ValueError: R is not the model's input_resolution.
        """
        height, width = images.shape[-2:]
        side = self.input_resolution
        if (height, width) != (side, side):
            raise ValueError(f"images are {height} x {width}, this CLIP takes {side} x {side} "
                             "(input_resolution)")
        if not normalised:
            images = self.normalise(images)
        return self.visual(images.to(self.visual.conv1.weight.dtype), patches)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens [N,L] from `tokenize` -> [N,D]; positions behind every text's end are not computed."""
        eot_index = tokens.argmax(dim=-1)  # the end-of-text id is CLIP's largest
        return self.encode_text_embeddings(self.embed_tokens(tokens[:, :int(eot_index.max()) + 1]), eot_index)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens [N,L] -> embeddings [N,L,W] without positions."""
        return self.token_embedding(tokens)

    def encode_text_embeddings(self, embeddings: Tensor, eot_index: Tensor) -> Tensor:
        """Embeddings [N,L,W] without positions, ends of text [N] -> [N,D]; ValueError for too long a text."""
        length = int(eot_index.max()) + 1
        if length > self.context_length:
            raise ValueError(f"text of {length} tokens, this CLIP takes {self.context_length} "
                             "(context_length)")
        x = self.transformer(embeddings[:, :length] + self.positional_embedding[:length], causal=True)
        ends = x[torch.arange(len(x), device=x.device), eot_index]
        return self.ln_final(ends) @ self.text_projection

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Images [B,3,R,R] in [0,1] and tokens [N,L] -> scaled cosine similarities [B,N]."""
        image_features = F.normalize(self.encode_image(images), dim=-1)
        text_features = F.normalize(self.encode_text(tokens), dim=-1)
        return self.logit_scale.exp() * image_features @ text_features.T


def architecture(state: dict[str, Tensor]) -> Architecture:
    """CLIP's sizes as the shapes in a state dict tell them; KeyError names a tensor that is missing."""
    def count(prefix: str) -> int:
        """The number of blocks in a list: of different N in the names `prefix` + N + ..."""
        return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})

    vision_layers: int | tuple[int, ...]
    if "visual.proj" in state:
        vision_width, _, _, patch_size = state["visual.conv1.weight"].shape
        vision_layers = count("visual.transformer.resblocks.")
        cell = patch_size  # pixels along a side of a position of the last grid
        positions = state["visual.positional_embedding"]
    else:
        vision_width = len(state["visual.layer1.0.conv1.weight"])
        patch_size = None
        vision_layers = tuple(count(f"visual.layer{level}.") for level in (1, 2, 3, 4))
        cell = 32
        positions = state["visual.attnpool.positional_embedding"]
    vocab_size, text_width = state["token_embedding.weight"].shape
    return Architecture(
        embed_dim=state["text_projection"].shape[1], image_resolution=cell * math.isqrt(len(positions) - 1),
        vision_layers=vision_layers, vision_width=vision_width, vision_patch_size=patch_size,
        context_length=len(state["positional_embedding"]), vocab_size=vocab_size, text_width=text_width,
        text_heads=text_width // 64, text_layers=count("transformer.resblocks."))
