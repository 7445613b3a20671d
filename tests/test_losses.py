"""Losses by hand-computed values; the module alone in an empty folder."""
import math
import shutil
import subprocess
import sys

import pytest
import torch

from clipwsss.guidance import losses


def test_similarity_is_the_clamped_cosine():
    image = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    text = torch.tensor([[4.0, 3.0], [-1.0, 0.0], [2.0, 0.0]])
    assert losses.similarity(image, text).tolist() == pytest.approx([0.96, 1e-4, 1 - 1e-4])
    many = losses.similarity(image, torch.stack([text, image], 1))
    assert many.shape == (3, 2) and many[:, 0].tolist() == pytest.approx([0.96, 1e-4, 1 - 1e-4])
    with torch.autocast("cpu", torch.bfloat16):
        low = losses.similarity(image.bfloat16(), text.bfloat16())
    assert low.dtype == torch.float32 and low.tolist() == pytest.approx([0.96, 1e-4, 1 - 1e-4])


@pytest.mark.smoke
def test_values_by_hand():
    s = torch.tensor([0.5, 0.25])
    assert losses.attract(s).tolist() == pytest.approx([math.log(2), math.log(4)])
    assert losses.repel(s).tolist() == pytest.approx([math.log(2), math.log(4 / 3)])
    table = torch.tensor([[0.5, 0.1], [0.3, 0.2]])
    assert losses.suppress(table, 0.26).flatten().tolist() == pytest.approx([math.log(2), 0, math.log(1 / 0.7), 0])
    assert losses.suppress(table, 0.9).sum() == 0
    for empty in (torch.empty(0), torch.empty(3, 0), torch.empty(0, 5)):
        assert losses.attract(empty).sum() == losses.repel(empty).sum() == losses.suppress(empty, 0.2).sum() == 0


def test_lifts_out_alone(tmp_path):
    shutil.copy(losses.__file__, tmp_path)
    code = "import sys; sys.path.insert(0, '.'); import losses; assert 'clipwsss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
