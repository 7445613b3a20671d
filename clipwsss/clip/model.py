"""CLIP's two towers under OpenAI's parameter names, written for frozen use: what cannot reach the output is not computed.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021; the names and sizes
are those of OpenAI's release (github.com/openai/CLIP, MIT), whose weights load unchanged.
"""
import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tokenizer import decode

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
SCALARS = ("input_resolution", "context_length", "vocab_size")  # kept beside the weights in OpenAI's archives


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), OpenAI's approximation of GELU, through the one-kernel SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(1.702 * x) / 1.702


class Attention(nn.Module):
    """Multi-head self-attention with the parameter names of nn.MultiheadAttention, batch first."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width ** -0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, causal: bool = False, first_only: bool = False) -> Tensor:
        """x [B,L,W] -> [B,L,W], or [B,1,W] when only the first token's answer is wanted."""
        width = x.shape[-1]
        if first_only:
            query = F.linear(x[:, :1], self.in_proj_weight[:width], self.in_proj_bias[:width])
            key, value = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        else:
            query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class ResidualBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(OrderedDict(
            c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width)))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, causal: bool = False, first_only: bool = False) -> Tensor:
        attended = self.attn(self.ln_1(x), causal, first_only)
        x = (x[:, :1] if first_only else x) + attended
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks; `first_only` spares the last block every token but the first."""

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


class VisionTransformer(nn.Module):
    """ViT tower: normalised images [B,3,R,R] -> [B,D]."""

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

    def tokens(self, images: Tensor, first_only: bool) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(x, first_only=first_only)) @ self.proj

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(images, first_only=True)[:, 0]

    def patches(self, images: Tensor) -> Tensor:
        """[B,h,w,D]: every patch token through the final norm and projection."""
        grid = math.isqrt(len(self.positional_embedding) - 1)
        return self.tokens(images, first_only=False)[:, 1:].unflatten(1, (grid, grid))


class Bottleneck(nn.Module):
    """Residual bottleneck whose strides are average poolings before the next convolution."""

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
    """Attention pooling [B,C,h,w] -> [B,D] for its one query, the mean of all positions.

    With one query, keys and values need no projection of their own: q.(W_k x + b_k) = (W_k' q).x + const, the constant
    leaves the softmax unchanged, and the weights sum to one, so W_v applies to the weighted mean. That is 4 C^2
    products instead of (2 (h w + 1) + 2) C^2, with the same result.
    """

    def __init__(self, grid: int, channels: int, heads: int, embed_dim: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(grid ** 2 + 1, channels) * channels ** -0.5)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(channels, channels) for _ in range(3))
        self.c_proj = nn.Linear(channels, embed_dim)
        for layer in (self.k_proj, self.q_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=channels ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
        query = self.q_proj(x[:, 0]).unflatten(-1, (self.heads, -1))
        key_weight, value_weight = (layer.weight.unflatten(0, (self.heads, -1)) for layer in (self.k_proj, self.v_proj))
        looked_for = torch.einsum("bhd,hdc->bhc", query * query.shape[-1] ** -0.5, key_weight)
        pooled = (looked_for @ x.transpose(1, 2)).softmax(dim=-1) @ x
        values = torch.einsum("bhc,hdc->bhd", pooled, value_weight).flatten(1) + self.v_proj.bias
        return self.c_proj(values)


class ModifiedResNet(nn.Module):
    """ResNet tower with a three-convolution stem and attention pooling: normalised images [B,3,R,R] -> [B,D]."""

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
            first = Bottleneck(channels, planes, stride=1 if level == 0 else 2)
            channels = 4 * planes
            rest = [Bottleneck(channels, planes, stride=1) for _ in range(count - 1)]
            self.add_module(f"layer{level + 1}", nn.Sequential(first, *rest))
        self.attnpool = AttentionPool(resolution // 32, channels, heads=width * 32 // 64, embed_dim=embed_dim)

    def features(self, images: Tensor) -> Tensor:
        x = images
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)), inplace=True)
        return self.layer4(self.layer3(self.layer2(self.layer1(self.avgpool(x)))))

    def forward(self, images: Tensor) -> Tensor:
        return self.attnpool(self.features(images))

    def patches(self, images: Tensor) -> Tensor:
        """[B,h,w,D]: every position through the pool's value and output projections (as MaskCLIP, ECCV 2022)."""
        features = self.features(images).permute(0, 2, 3, 1)
        return self.attnpool.c_proj(self.attnpool.v_proj(features))


class CLIP(nn.Module):
    """Image and text encoders into one space of D dimensions; features are not normalised to unit length.

    `vision_layers` is the depth of a ViT (int) or the four block counts of a ResNet (tuple, `vision_patch_size` None).
    `token_ids` (sorted int64 [vocab_size]) makes a small model: its rows are these ids of CLIP's vocabulary, and texts
    are still tokenised by `tokenize`. Such a model's `token_ids` and any text heads other than width / 64 travel in the
    state dict, so `CLIP.from_state_dict(model.state_dict())` always rebuilds the model.
    """

    def __init__(self, embed_dim: int, image_resolution: int, vision_layers: int | tuple[int, ...], vision_width: int,
                 vision_patch_size: int | None, context_length: int, vocab_size: int, text_width: int,
                 text_heads: int, text_layers: int, token_ids: Tensor | None = None):
        super().__init__()
        if token_ids is not None and (len(token_ids) != vocab_size or bool((token_ids.diff() <= 0).any())):
            raise ValueError(f"token_ids must be {vocab_size} ids in rising order (vocab_size)")
        self.input_resolution = image_resolution
        if isinstance(vision_layers, int):
            self.visual = VisionTransformer(
                image_resolution, vision_patch_size, vision_width, vision_layers, embed_dim)
        else:
            self.visual = ModifiedResNet(image_resolution, vision_layers, vision_width, embed_dim)
        self.transformer = Transformer(text_width, text_layers, text_heads)
        self.token_embedding = nn.Embedding(vocab_size, text_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context_length, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.randn(text_width, embed_dim) * text_width ** -0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.register_buffer("token_ids", token_ids)
        self.register_buffer("text_heads", torch.tensor(text_heads) if text_heads != text_width // 64 else None)
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):  # cpu: survives a meta build
            self.register_buffer(name, torch.tensor(values, device="cpu").view(3, 1, 1), persistent=False)

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "CLIP":
        """The model whose architecture the tensors' shapes tell, with a float32 copy of the weights, in eval mode.

        Raises ValueError (one line, first few names) for missing, unexpected or wrongly shaped tensors.
        """
        state = {name: value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()
                 for name, value in state.items() if name not in SCALARS}
        try:
            sizes = architecture(state)
        except KeyError as missing:
            raise ValueError(f"these are no CLIP weights: tensor {missing} is missing") from None
        with torch.device("meta"):
            model = cls(**sizes)
        wanted = {name: value.shape for name, value in model.state_dict().items()}
        missing = [name for name in wanted if name not in state]
        extra = [name for name in state if name not in wanted]
        misshaped = [f"{name} {list(state[name].shape)} instead of {list(shape)}"
                     for name, shape in wanted.items() if name in state and state[name].shape != shape]
        for what, names in (("missing", missing), ("unexpected", extra), ("wrongly shaped", misshaped)):
            if names:
                more = ", ..." if len(names) > 3 else ""
                raise ValueError(f"CLIP weights with {len(names)} {what} tensors: {', '.join(names[:3])}{more}")
        model.load_state_dict(state, assign=True)
        return model.eval()

    @property
    def context_length(self) -> int:
        return len(self.positional_embedding)

    @property
    def text_width(self) -> int:
        return self.positional_embedding.shape[1]

    @property
    def vocab_size(self) -> int:
        return len(self.token_embedding.weight)

    def normalise(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1] to CLIP's zero mean and unit deviation."""
        return (images - self.pixel_mean) / self.pixel_std

    def encode_image(self, images: Tensor, normalised: bool = False) -> Tensor:
        """Images [B,3,R,R] in [0,1] (or already through `normalise`) -> [B,D]; ValueError unless R = input_resolution."""
        return self.visual(self._ready(images, normalised))

    def encode_patches(self, images: Tensor, normalised: bool = False) -> Tensor:
        """As `encode_image`, but one feature for every position of the last grid: [B,h,w,D]."""
        return self.visual.patches(self._ready(images, normalised))

    def _ready(self, images: Tensor, normalised: bool) -> Tensor:
        height, width = images.shape[-2:]
        if (height, width) != (self.input_resolution, self.input_resolution):
            side = self.input_resolution
            raise ValueError(f"images are {height} x {width}, this CLIP takes {side} x {side} (input_resolution)")
        return images if normalised else self.normalise(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens [N,L] from `tokenize` -> [N,D]; nothing behind the last end of text is computed, being unseen by it."""
        eot_index = tokens.argmax(dim=-1)  # the end-of-text id is CLIP's largest
        return self.encode_text_embeddings(self.embed_tokens(tokens[:, :int(eot_index.max()) + 1]), eot_index)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens [N,L] -> embeddings [N,L,W], no positions added; ValueError for words a small model does not know."""
        return self.token_embedding(tokens if self.token_ids is None else self._rows(tokens))

    def _rows(self, tokens: Tensor) -> Tensor:
        """Rows of a small model's embedding; zeros behind the end of text are padding and may be any row."""
        rows = torch.searchsorted(self.token_ids, tokens).clamp(max=self.vocab_size - 1)
        behind = torch.arange(tokens.shape[1], device=tokens.device) > tokens.argmax(dim=-1, keepdim=True)
        unknown = tokens[(self.token_ids[rows] != tokens) & ~(behind & (tokens == 0))].unique().tolist()
        if unknown:
            words = ", ".join(f"{decode([token]).strip()!r} (token {token})" for token in unknown[:5])
            raise ValueError(f"this small CLIP knows {self.vocab_size} tokens, and not {words}")
        return rows

    def encode_text_embeddings(self, embeddings: Tensor, eot_index: Tensor) -> Tensor:
        """Embeddings [N,L,W] without positions and end-of-text positions [N] -> [N,D]; gradients reach the embeddings.

        Raises ValueError when an end of text lies beyond the context length.
        """
        length = int(eot_index.max()) + 1
        if length > self.context_length:
            raise ValueError(f"text of {length} tokens, this CLIP takes {self.context_length} (context_length)")
        x = self.transformer(embeddings[:, :length] + self.positional_embedding[:length], causal=True)
        ends = x[torch.arange(len(x), device=x.device), eot_index]
        return self.ln_final(ends) @ self.text_projection

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Images [B,3,R,R] in [0,1] and tokens [N,L] -> scaled cosine similarities [B,N]."""
        image_features = F.normalize(self.encode_image(images), dim=-1)
        text_features = F.normalize(self.encode_text(tokens), dim=-1)
        return self.logit_scale.exp() * image_features @ text_features.T


def architecture(state: dict[str, Tensor]) -> dict:
    """CLIP's constructor arguments as the shapes of a state dict tell them; KeyError names a tensor it needs."""
    def count(prefix: str) -> int:
        return len({name[len(prefix):].split(".")[0] for name in state if name.startswith(prefix)})

    if "visual.proj" in state:
        vision_width, _, _, patch_size = state["visual.conv1.weight"].shape
        vision_layers: int | tuple[int, ...] = count("visual.transformer.resblocks.")
        cell, positions = patch_size, state["visual.positional_embedding"]
    else:
        vision_width, patch_size = len(state["visual.layer1.0.conv1.weight"]), None
        vision_layers = tuple(count(f"visual.layer{level}.") for level in (1, 2, 3, 4))
        cell, positions = 32, state["visual.attnpool.positional_embedding"]
    vocab_size, text_width = state["token_embedding.weight"].shape
    return dict(
        embed_dim=state["text_projection"].shape[1], image_resolution=cell * math.isqrt(len(positions) - 1),
        vision_layers=vision_layers, vision_width=vision_width, vision_patch_size=patch_size,
        context_length=len(state["positional_embedding"]), vocab_size=vocab_size, text_width=text_width,
        text_heads=int(state.get("text_heads", text_width // 64)),
        text_layers=count("transformer.resblocks."), token_ids=state.get("token_ids"))
