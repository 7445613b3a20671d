"""CLIP: images and texts in one space; `load` a model, `tokenize` texts. The folder works alone."""
from .checkpoint import CheckpointError, available, load
from .model import CLIP
from .tokenizer import decode, tokenize

__all__ = ["CLIP", "CheckpointError", "available", "decode", "load", "tokenize"]
