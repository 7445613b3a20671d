"""Plain vision transformers under DeiT's published parameter names (a leaf module).

Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; Touvron et al., "Training data-efficient image
transformers", ICML 2021. Networks take images in [0, 1] and normalise them themselves.
"""
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS = {"deit_small": "https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth"}


class ViTSpec(NamedTuple):
    """Shape of a network: channels, blocks, heads, side of a patch, patches along a side of its positions."""
    width: int
    depth: int
    heads: int
    patch: int = 16
    grid: int = 14


SPECS = {"deit_small": ViTSpec(384, 12, 6), "deit_toy": ViTSpec(64, 3, 4, patch=8, grid=12)}
TRANSFORMERS = tuple(SPECS)
BODY = ("cls_token", "pos_embed", "patch_embed", "blocks", "norm")  # how a transformer's parameters begin


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values [B,heads,N,width/heads] of tokens [B,N,width]."""
        return self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(*self.split(tokens))
        return self.proj(mixed.transpose(1, 2).flatten(2))


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """What each query gives to each key [..,N,N], of one or several heads [..,N,width/heads]."""
    return (query * query.shape[-1] ** -0.5 @ key.mT).softmax(dim=-1)


class Block(nn.Module):
    """Attention and a two-layer perceptron, added to the tokens; training leaves one out at times."""

    def __init__(self, width: int, heads: int, drop_path: float = 0.0):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.drop_path = StochasticDepth(drop_path, "row")

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

    h and w are H and W over the side of a patch, rounded down: an image's rest at the right and below is not
    seen. Positions are resized to that grid as DINO does it, and with it WeakTr.
    drop_path: how often training skips the last block's branches; less often before, linearly (DeiT).
    """

    def __init__(self, spec: ViTSpec, n_tokens: int = 1, drop_path: float = 0.0):
        super().__init__()
        self.spec, self.n_tokens = spec, n_tokens
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, spec.width, spec.patch, stride=spec.patch)})
        self.cls_token = nn.Parameter(torch.empty(1, n_tokens, spec.width))
        self.pos_embed = nn.Parameter(torch.empty(1, n_tokens + spec.grid ** 2, spec.width))
        rates = torch.linspace(0, drop_path, spec.depth).tolist()
        self.blocks = nn.ModuleList(Block(spec.width, spec.heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(spec.width, eps=1e-6)
        for name, value in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for weight in (self.cls_token, self.pos_embed, *(module.weight for module in linear)):
            nn.init.trunc_normal_(weight, std=0.02)
        for module in linear:
            nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Class tokens and patches [B,N,width] with positions, before the first block; the grid (h, w)."""
        patches = self.patch_embed["proj"]((images - self.mean) / self.std)
        grid = (patches.shape[2], patches.shape[3])
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).mT], dim=1)
        return tokens + self.positions(grid), grid

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings [1,n_tokens+h*w,width] of a grid (h, w), bicubic where it is not theirs."""
        own, patches = self.pos_embed.split([self.n_tokens, self.spec.grid ** 2], dim=1)
        if grid == (self.spec.grid, self.spec.grid):
            return self.pos_embed
        patches = patches.mT.unflatten(-1, (self.spec.grid, self.spec.grid))
        # 0.1 keeps the size from being rounded down; it also moves the samples a little, as in training there
        factors = [(side + 0.1) / self.spec.grid for side in grid]
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic")
        return torch.cat([own, patches.flatten(2).mT], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        tokens, _ = self.embed(images)
        for block in self.blocks:
            tokens, _ = block(tokens)
        return self.norm(tokens)


def download(backbone: str) -> Path:
    """The file of a backbone's published ImageNet weights, downloaded once and checked by its SHA-256.

    Raises ValueError for a backbone without any and for a damaged file, FileNotFoundError offline.
    """
    if backbone not in WEIGHTS:
        raise ValueError(f"{backbone} has no ImageNet weights; use weights none or a path")
    url = WEIGHTS[backbone]
    path, digest = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name, Path(url).stem.split("-")[-1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), digest, progress=False)
        except OSError as error:
            raise FileNotFoundError(f"could not download {url} ({error}); fetch that file elsewhere and put "
                                    f"it at {path}") from None
        except RuntimeError as error:
            raise ValueError(f"{url}: a damaged download ({error}); try again") from None
    with open(path, "rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(digest):
            raise ValueError(f"{path}: damaged weights, not those published; delete the file and try again")
    return path


def read_weights(weights: str | Path, backbone: str) -> Mapping[str, Tensor]:
    """A state dict with DeiT's names: "imagenet" (`download`) or a file's, which may lie under "model" there.

    Raises ValueError on an unfit file, FileNotFoundError for one out of reach.
    """
    path = download(backbone) if str(weights) == "imagenet" else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file; use none, imagenet or a file's path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: not a readable state dict ({type(error).__name__})") from None
    state = state.get("model", state) if isinstance(state, dict) else {}
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= state.keys():
        raise ValueError(f"{path}: not the weights of a vision transformer with DeiT's names")
    return state


def start_from(network: VisionTransformer, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Fill a network from DeiT's weights: each class token a copy of theirs, positions resized, without head.

    What the network has beside a transformer keeps its start. ValueError, naming `source`, where they do not
    fit.
    """
    spec, state = network.spec, dict(state)
    own, patches = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    side = round(patches.shape[1] ** 0.5)
    if side != spec.grid:
        patches = patches.mT.unflatten(-1, (side, side))
        patches = F.interpolate(patches, (spec.grid, spec.grid), mode="bicubic").flatten(2).mT
    state["pos_embed"] = torch.cat([own.expand(-1, network.n_tokens, -1), patches], dim=1)
    state["cls_token"] = state["cls_token"].expand(-1, network.n_tokens, -1)
    own = {name: value for name, value in network.state_dict().items() if name.split(".")[0] not in BODY}
    body = {name: value for name, value in state.items() if name.split(".")[0] in BODY}
    try:
        network.load_state_dict({**own, **body})
    except RuntimeError as error:
        reason = " ".join(str(error).split()).partition(": ")[2][:160]
        raise ValueError(f"{source}: not weights of this transformer ({reason})") from None
