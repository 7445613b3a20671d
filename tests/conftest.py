"""Shared fixtures: the package on the path, and the optional sample of real VOC images."""
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def voc_sample() -> Path:
    """Folder with 8 real VOC images and published CAM files; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared" / "voc_sample"
    if not folder.is_dir():
        pytest.skip("voc_sample is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_clip():
    """A random frozen CLIP of 16 x 16 pixels that knows every token."""
    import torch

    from clipwsss.clip import CLIP, Architecture
    torch.manual_seed(0)
    model = CLIP(Architecture(embed_dim=32, image_resolution=16, vision_layers=2, vision_width=64, vision_patch_size=4,
                              context_length=77, vocab_size=49408, text_width=64, text_heads=2, text_layers=2))
    return model.eval().requires_grad_(False)
