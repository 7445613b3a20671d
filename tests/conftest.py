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
