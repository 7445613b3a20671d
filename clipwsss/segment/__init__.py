"""Segmenters: `Segmenter("segmenter.pt")("photo.jpg")` labels a photograph."""
from .segmenter import Segmentation, Segmenter

__all__ = ["Segmentation", "Segmenter"]
