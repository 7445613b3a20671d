"""CLIP: images and texts in one space; `load` a model, `tokenize` texts. The folder works alone."""
from .checkpoint import CheckpointError, load
from .model import CLIP, Architecture
from .tokenizer import tokenize

__all__ = ["CLIP", "Architecture", "CheckpointError", "load", "tokenize"]
