"""Losses by hand-computed values; the module alone in an empty folder."""
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipwsss.guidance import losses

LEAVES = ("losses", "metrics")  # the other leaf modules' own tests do the same


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


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_module_imports_from_an_empty_folder(tmp_path, name):
    shutil.copy(Path(losses.__file__).with_name(f"{name}.py"), tmp_path)
    code = f"import sys; sys.path.insert(0, '.'); import {name}; assert 'clipwsss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
