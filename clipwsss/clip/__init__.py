"""CLIP: images and texts in one space. The folder imports nothing else of the package.

    model = CLIP.from_state_dict(read_archive("ViT-B-32.pt"))
    model.encode_text(tokenize(["a photo of a dog"]))
"""
from .checkpoint import CLIP_RELEASE, is_archive, read_archive
from .model import CLIP, Architecture, architecture
from .open_clip import Kind, find_kind, misfit
from .tokenizer import VOCABULARY, tokenize

__all__ = ["CLIP", "CLIP_RELEASE", "VOCABULARY", "Architecture", "Kind", "architecture", "find_kind",
           "is_archive", "misfit", "read_archive", "tokenize"]
