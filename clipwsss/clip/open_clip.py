"""open_clip's models and weights: what no tensor tells of a CLIP, and where its file is published.

The names, addresses, activations and colour statistics are those of open_clip (open_clip_torch 3.3, MIT).
"""
from typing import NamedTuple

from .checkpoint import CLIP_RELEASE
from .model import PIXEL_MEAN, PIXEL_STD, Architecture

HALF = (0.5, 0.5, 0.5)
ACTIVATIONS = {"gelu": False, "quickgelu": True}  # name of a kind of any size -> whether it has QuickGELU
QUICK = "-quickgelu"  # ends the name of a model with QuickGELU in open_clip, where other models have GELU

# Vision layers, vision width, patch size, input resolution.
MODELS = {
    "RN50": ((3, 4, 6, 3), 64, None, 224),
    "RN101": ((3, 4, 23, 3), 64, None, 224),
    "RN50x4": ((4, 6, 10, 6), 80, None, 288),
    "RN50x16": ((6, 8, 18, 8), 96, None, 384),
    "RN50x64": ((3, 15, 36, 10), 128, None, 448),
    "ViT-S-32": (12, 384, 32, 224),
    "ViT-S-16": (12, 384, 16, 224),
    "ViT-M-32": (12, 512, 32, 224),
    "ViT-M-16": (12, 512, 16, 224),
    "ViT-B-32": (12, 768, 32, 224),
    "ViT-B-32-256": (12, 768, 32, 256),
    "ViT-B-32-plus-256": (12, 896, 32, 256),
    "ViT-B-16": (12, 768, 16, 224),
    "ViT-B-16-plus": (12, 896, 16, 224),
    "ViT-B-16-plus-240": (12, 896, 16, 240),
    "ViT-L-16": (24, 1024, 16, 224),
    "ViT-L-16-320": (24, 1024, 16, 320),
    "ViT-L-14": (24, 1024, 14, 224),
    "ViT-L-14-280": (24, 1024, 14, 280),
    "ViT-L-14-336": (24, 1024, 14, 336),
    "ViT-H-16": (32, 1280, 16, 224),
    "ViT-H-14": (32, 1280, 14, 224),
    "ViT-H-14-378": (32, 1280, 14, 378),
    "ViT-g-14": (40, 1408, 14, 224),
    "ViT-bigG-14": (48, 1664, 14, 224),
}
HUGGING_FACE = "https://huggingface.co/{}/resolve/main/open_clip_pytorch_model.bin"
OPEN_CLIP = "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/{}"
METACLIP = "https://dl.fbaipublicfiles.com/MMPT/metaclip/{}"
# Name: where its file lies. A name of the release page of open_clip ends with digits of the SHA-256.
GELU_FILES = {
    "ViT-B-32/laion2b_e16": OPEN_CLIP.format("vit_b_32-laion2b_e16-af8dbd0c.pth"),
    "ViT-B-32/laion2b_s34b_b79k": HUGGING_FACE.format("laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    "ViT-B-32/datacomp_xl_s13b_b90k": HUGGING_FACE.format("laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"),
    "ViT-B-32-256/datacomp_s34b_b86k": HUGGING_FACE.format("laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K"),
    "ViT-B-16/laion400m_e31": OPEN_CLIP.format("vit_b_16-laion400m_e31-00efa78f.pt"),
    "ViT-B-16/laion400m_e32": OPEN_CLIP.format("vit_b_16-laion400m_e32-55e67d44.pt"),
    "ViT-B-16/laion2b_s34b_b88k": HUGGING_FACE.format("laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    "ViT-B-16/datacomp_xl_s13b_b90k": HUGGING_FACE.format("laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K"),
    "ViT-B-16/datacomp_l_s1b_b8k": HUGGING_FACE.format("laion/CLIP-ViT-B-16-DataComp.L-s1B-b8K"),
    "ViT-B-16-plus-240/laion400m_e31": OPEN_CLIP.format("vit_b_16_plus_240-laion400m_e31-8fb26589.pt"),
    "ViT-B-16-plus-240/laion400m_e32": OPEN_CLIP.format("vit_b_16_plus_240-laion400m_e32-699c4b84.pt"),
    "ViT-L-14/laion400m_e31": OPEN_CLIP.format("vit_l_14-laion400m_e31-69988bb6.pt"),
    "ViT-L-14/laion400m_e32": OPEN_CLIP.format("vit_l_14-laion400m_e32-3d133497.pt"),
    "ViT-L-14/laion2b_s32b_b82k": HUGGING_FACE.format("laion/CLIP-ViT-L-14-laion2B-s32B-b82K"),
    "ViT-L-14/datacomp_xl_s13b_b90k": HUGGING_FACE.format("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"),
    "ViT-L-14/dfn2b_s39b": HUGGING_FACE.format("apple/DFN2B-CLIP-ViT-L-14-39B"),
    "ViT-H-14/laion2b_s32b_b79k": HUGGING_FACE.format("laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "ViT-H-14/metaclip_altogether": METACLIP.format("h14_v1.2_altogether.pt"),
    "ViT-g-14/laion2b_s12b_b42k": HUGGING_FACE.format("laion/CLIP-ViT-g-14-laion2B-s12B-b42K"),
    "ViT-g-14/laion2b_s34b_b88k": HUGGING_FACE.format("laion/CLIP-ViT-g-14-laion2B-s34B-b88K"),
    "ViT-bigG-14/laion2b_s39b_b160k": HUGGING_FACE.format("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"),
}
QUICK_GELU_FILES = {
    "RN50/yfcc15m": OPEN_CLIP.format("rn50-quickgelu-yfcc15m-455df137.pt"),
    "RN50/cc12m": OPEN_CLIP.format("rn50-quickgelu-cc12m-f000538c.pt"),
    "RN101/yfcc15m": OPEN_CLIP.format("rn101-quickgelu-yfcc15m-3e04b30e.pt"),
    "ViT-B-32/laion400m_e31": OPEN_CLIP.format("vit_b_32-quickgelu-laion400m_e31-d867053b.pt"),
    "ViT-B-32/laion400m_e32": OPEN_CLIP.format("vit_b_32-quickgelu-laion400m_e32-46683a32.pt"),
    "ViT-B-32/metaclip_400m": METACLIP.format("b32_400m.pt"),
    "ViT-B-32/metaclip_fullcc": METACLIP.format("b32_fullcc2.5b.pt"),
    "ViT-B-16/dfn2b": HUGGING_FACE.format("apple/DFN2B-CLIP-ViT-B-16"),
    "ViT-B-16/metaclip_400m": METACLIP.format("b16_400m.pt"),
    "ViT-B-16/metaclip_fullcc": METACLIP.format("b16_fullcc2.5b.pt"),
    "ViT-L-14/dfn2b": HUGGING_FACE.format("apple/DFN2B-CLIP-ViT-L-14"),
    "ViT-L-14/metaclip_400m": METACLIP.format("l14_400m.pt"),
    "ViT-L-14/metaclip_fullcc": METACLIP.format("l14_fullcc2.5b.pt"),
    "ViT-H-14/dfn5b": HUGGING_FACE.format("apple/DFN5B-CLIP-ViT-H-14"),
    "ViT-H-14/metaclip_fullcc": METACLIP.format("h14_fullcc2.5b.pt"),
    "ViT-H-14-378/dfn5b": HUGGING_FACE.format("apple/DFN5B-CLIP-ViT-H-14-378"),
    "ViT-bigG-14/metaclip_fullcc": METACLIP.format("G14_fullcc2.5b.pt"),
}
OTHER_COLOURS = {"ViT-L-14/laion2b_s32b_b82k": (HALF, HALF)}  # mean and deviation of the pixels in training


class Kind(NamedTuple):
    """What no tensor of a CLIP tells. name: of the weights, or of the model alone.

    model: in MODELS, or "" for a CLIP of any size. url: of the weights, "" for a model alone. sha256:
    the first digits, "" where they are not published.
    """
    name: str
    model: str
    quick_gelu: bool
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    url: str
    sha256: str


def find_kind(name: str) -> Kind:
    """The kind of a CLIP by its name.

    Names are those of CLIP_RELEASE (ViT-B/16), of open_clip's weights (ViT-B-16/laion2b_s34b_b88k; their
    beginning is enough where no other weights begin so; ViT-B-16/openai), of open_clip's models (ViT-B-16,
    ViT-B-16-quickgelu), and of ACTIVATIONS. ValueError: no such name, several weights that begin so, or a
    ResNet's, which OpenAI and open_clip call alike though the activations differ.
    """
    if name in ACTIVATIONS:
        return Kind(name, "", ACTIVATIONS[name], PIXEL_MEAN, PIXEL_STD, "", "")
    openai = {}  # name in open_clip -> name in CLIP_RELEASE
    for released, (url, _) in CLIP_RELEASE.items():
        model = released.replace("/", "-").removesuffix("px").replace("@", "-")
        openai[f"{model}/openai"] = released
        if released == name and "/" in released:
            name = f"{model}/openai"
    model, slash, tag = name.partition("/")
    plain = model.removesuffix(QUICK)
    if plain not in MODELS:
        raise ValueError(f"no CLIP is called {name}; WEIGHTS.md has the names")
    if not slash and model in CLIP_RELEASE:
        raise ValueError(f"{name} may be OpenAI's, which is {name}/openai here, or open_clip's {name}, whose "
                         "activation is called gelu here")
    if not slash:
        return Kind(name, plain, model != plain, PIXEL_MEAN, PIXEL_STD, "", "")
    tables = GELU_FILES | QUICK_GELU_FILES | openai
    found = [known for known in tables if known == f"{plain}/{tag}"]
    found = found or [known for known in tables if known.startswith(f"{plain}/{tag}")]
    if len(found) != 1:
        valid = ", ".join(found or [known for known in tables if known.startswith(f"{plain}/")])
        raise ValueError(f"{name} is the name of {len(found) or 'no'} weights; the names are "
                         f"{valid or 'none'}")
    full = found[0]
    if model != plain and full in GELU_FILES:
        raise ValueError(f"{name} is the name of no weights; {full} has GELU")
    mean, std = OTHER_COLOURS.get(full, (PIXEL_MEAN, PIXEL_STD))
    if full in openai:
        return Kind(full, plain, True, mean, std, *CLIP_RELEASE[openai[full]])
    url = tables[full]
    digits = url.rpartition("-")[2].partition(".")[0] if url.startswith(OPEN_CLIP.format("")) else ""
    return Kind(full, plain, full in QUICK_GELU_FILES, mean, std, url, digits)


def misfit(kind: Kind, sizes: Architecture) -> str:
    """How a CLIP of these sizes differs from its kind, "" where it does not."""
    found = (sizes.vision_layers, sizes.vision_width, sizes.vision_patch_size, sizes.image_resolution)
    if not kind.model or found == MODELS[kind.model]:
        return ""
    same = [model for model, expected in MODELS.items() if expected == found]
    return f"its sizes are those of {same[0] if same else 'another model'}, not of {kind.model}"
