"""CLIP: images and texts in one space. `load` a model, `tokenize` texts; imports nothing outside this folder."""
from .checkpoint import CheckpointError, available, load
from .model import CLIP
from .tokenizer import decode, tokenize

__all__ = ["CLIP", "CheckpointError", "available", "decode", "load", "tokenize"]
