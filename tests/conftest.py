"""Shared fixtures: the package on the path, finished runs, and the optional sample of real VOC images."""
import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# The tests' networks are tiny: more threads only wait for each other. This also holds for scripts that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """`pytest -m smoke` runs a few central tests of every module in under a minute."""
    config.addinivalue_line("markers", "smoke: a quick, central test")


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
    sizes = Architecture(embed_dim=32, image_resolution=16, vision_layers=2, vision_width=64, vision_patch_size=4,
                         context_length=77, vocab_size=49408, text_width=64, text_heads=2, text_layers=2)
    return CLIP(sizes).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder with data and finished runs of all stages, which no test changes."""
    from finished_runs import make
    return make(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def copied(finished, tmp_path, monkeypatch) -> Path:
    """A copy of `finished` to be damaged, which is the working folder."""
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    monkeypatch.chdir(root)
    return root
