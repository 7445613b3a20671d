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


def test_terms_by_hand():
    s = torch.tensor([0.5, 0.25])
    assert losses.attract(s).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert losses.repel(s).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    table = torch.tensor([[0.5, 0.1], [0.3, 0.2]])
    expected = math.log(2) + math.log(1 / 0.7)
    assert losses.suppress(table, 0.26, "sum").item() == pytest.approx(expected)
    assert losses.suppress(table, 0.26, "mean").item() == pytest.approx(expected / 2)
    assert losses.suppress(table, 0.9).item() == 0
    assert losses.area(torch.tensor([[0.0, 1.0], [0.5, 0.5]])).item() == 0.5


def test_no_pairs_and_no_prompts_give_zero():
    empty = torch.empty(0)
    assert losses.attract(empty) == losses.repel(empty) == losses.area(empty) == 0
    for reduction in ("sum", "mean"):
        assert losses.suppress(torch.empty(3, 0), 0.2, reduction) == 0
        assert losses.suppress(torch.empty(0, 5), 0.2, reduction) == 0


def test_lifts_out_alone(tmp_path):
    shutil.copy(losses.__file__, tmp_path)
    code = "import sys; sys.path.insert(0, '.'); import losses; assert 'clipwsss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
