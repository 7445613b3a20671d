"""CLIP: an image tower and a text transformer, built from the weights' shapes and what these do not tell.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .towers import ResNetTower, Transformer, ViTTower

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
# What OpenAI's archives store beside the weights, and constants that tracing turns into attributes.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "pixel_mean", "pixel_std")

HEAD_WIDTH = 64  # channels of an attention head
# The image towers of open_clip whose heads have another width, by the towers' width: ViT-H, g, bigG and e.
WIDER_HEADS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}


class Architecture(NamedTuple):
    """Sizes of a CLIP; vision_layers: a ViT's depth, or a ResNet's numbers of blocks (with no patch size).

    vision_hidden, text_hidden: channels between the two last layers of a block, by default 4 times its width.
    quick_gelu: the activation of the transformers, see `ResidualBlock`.
    """
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
    vision_hidden: int | None = None
    text_hidden: int | None = None
    quick_gelu: bool = True


class CLIP(nn.Module):
    """Image and text encoders into one space of D dimensions; features are not normalised to unit length."""

    def __init__(self, sizes: Architecture):
        super().__init__()
        self.input_resolution = sizes.image_resolution
        self.context_length = sizes.context_length
        if isinstance(sizes.vision_layers, int):
            width = sizes.vision_width
            heads = width // WIDER_HEADS.get(width, HEAD_WIDTH)
            self.visual = ViTTower(sizes.image_resolution, sizes.vision_patch_size, width,
                                   sizes.vision_layers, sizes.embed_dim, heads,
                                   sizes.vision_hidden or 4 * width, sizes.quick_gelu)
        else:
            self.visual = ResNetTower(sizes.image_resolution, sizes.vision_layers, sizes.vision_width,
                                      sizes.embed_dim)
        self.transformer = Transformer(sizes.text_width, sizes.text_layers, sizes.text_heads,
                                       sizes.text_hidden or 4 * sizes.text_width, sizes.quick_gelu)
        self.token_embedding = nn.Embedding(sizes.vocab_size, sizes.text_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(sizes.context_length, sizes.text_width))
        self.ln_final = nn.LayerNorm(sizes.text_width)
        self.text_projection = nn.Parameter(
            torch.randn(sizes.text_width, sizes.embed_dim) * sizes.text_width ** -0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.set_colours(PIXEL_MEAN, PIXEL_STD)

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor], quick_gelu: bool | None = None) -> "CLIP":
        """The model whose sizes the tensors' shapes tell, with a float32 copy of the weights, in eval mode.

        quick_gelu: the activation, which no tensor tells; None for OpenAI's models, which have QuickGELU.
        ValueError: a tensor that tells the sizes is missing, heads of this width are not known, or the width
        is of none of OpenAI's models and no activation is given. RuntimeError of load_state_dict: other
        tensors are missing, unknown or of another shape.
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
        if quick_gelu is None and sizes.vision_width in WIDER_HEADS:
            raise ValueError(f"OpenAI has published no CLIP with {sizes.vision_width} channels, and tensors "
                             "do not tell its activation, QuickGELU or GELU")
        with torch.device("meta"):
            model = cls(sizes._replace(quick_gelu=quick_gelu is not False))
        model.load_state_dict(weights, assign=True)
        return model.eval()

    def set_colours(self, mean: tuple[float, float, float], deviation: tuple[float, float, float]) -> None:
        """Set the mean and deviation of the pixels' colours, RGB in [0,1], that `normalise` uses."""
        for name, values in (("pixel_mean", mean), ("pixel_std", deviation)):
            values = torch.tensor(values, device="cpu").view(3, 1, 1)  # cpu: real even when built on meta
            self.register_buffer(name, values, persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1] with CLIP's mean subtracted, divided by its standard deviation."""
        return (images - self.pixel_mean) / self.pixel_std

    def encode_image(self, images: Tensor, normalised: bool = False, patches: bool = False) -> Tensor:
        """Images [B,3,R,R] in [0,1] -> features [B,D].

        normalised: the images come from `normalise`. patches: one feature for every position of the tower's
        last grid instead, [B,h,w,D], of images [B,3,H,W] of any size. ValueError: R is not the model's
        input_resolution.
        """
        height, width = images.shape[-2:]
        side = self.input_resolution
        if not patches and (height, width) != (side, side):
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
    """CLIP's sizes as the shapes in a state dict tell them, with OpenAI's activation.

    KeyError names a tensor that is missing. ValueError: a width whose heads are not known.
    """
    def count(prefix: str) -> int:
        """The number of blocks in a list: of different N in the names `prefix` + N + ..."""
        return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})

    vision_layers: int | tuple[int, ...]
    if "visual.proj" in state:
        vision_width, _, _, patch_size = state["visual.conv1.weight"].shape
        vision_layers = count("visual.transformer.resblocks.")
        cell = patch_size  # pixels along a side of a position of the last grid
        positions = state["visual.positional_embedding"]
        vision_hidden = len(state["visual.transformer.resblocks.0.mlp.c_fc.weight"])
        if vision_width not in WIDER_HEADS and vision_width % HEAD_WIDTH:
            raise ValueError(f"the width of the heads of a tower of {vision_width} channels is not known")
    else:
        vision_width = len(state["visual.layer1.0.conv1.weight"])
        patch_size = None
        vision_hidden = None
        vision_layers = tuple(count(f"visual.layer{level}.") for level in (1, 2, 3, 4))
        cell = 32
        positions = state["visual.attnpool.positional_embedding"]
    vocab_size, text_width = state["token_embedding.weight"].shape
    return Architecture(
        embed_dim=state["text_projection"].shape[1], image_resolution=cell * math.isqrt(len(positions) - 1),
        vision_layers=vision_layers, vision_width=vision_width, vision_patch_size=patch_size,
        context_length=len(state["positional_embedding"]), vocab_size=vocab_size, text_width=text_width,
        text_heads=text_width // HEAD_WIDTH, text_layers=count("transformer.resblocks."),
        vision_hidden=vision_hidden, text_hidden=len(state["transformer.resblocks.0.mlp.c_fc.weight"]))
