"""The epoch of best CAMs: kept, given back, and nothing of one stage left for the next."""
import json

import pytest
import torch
from test_train_scripts import guide, runs  # noqa: F401 (a fixture)
from torch import nn

from clipwsss.datasets import build_dataset
from clipwsss.report import best
from clipwsss.toy.world import draw_world


def test_the_best_epoch_comes_back_and_the_next_stage_begins_anew(tmp_path, monkeypatch, capsys):
    draw_world(tmp_path / "world", 0, 2, 1)
    network = nn.Linear(1, 1, bias=False)
    keeper = best.BestEpoch(network, build_dataset("toy", tmp_path / "world", "val"))
    for stage, expected in (([30.0, 50.0, 40.0], 2), ([9.0, 8.0], 1)):
        figures = iter(stage)
        monkeypatch.setattr(best, "cam_miou", lambda *_: next(figures))
        for epoch in range(len(stage)):
            nn.init.constant_(network.weight, epoch + 1)
            keeper.end_epoch(epoch)
        keeper.restore()
        assert network.weight.item() == expected
        assert f"kept epoch {expected}: CAM mIoU {max(stage):.2f}" in capsys.readouterr().out


def test_a_split_without_masks_is_refused(tmp_path):
    draw_world(tmp_path / "world", 0, 2, 1)
    data = build_dataset("toy", tmp_path / "world", "val")
    data.has_masks = False
    with pytest.raises(ValueError, match="no masks"):
        best.BestEpoch(nn.Linear(1, 1), data)


def test_matching_hands_its_best_epoch_to_the_prompts(runs, tmp_path, capsys, monkeypatch):  # noqa: F811
    """As SemPLeS' release: stage (b) learns on stage (a)'s best checkpoint."""
    figures, weights = iter([70.0, 60.0, 50.0]), []

    def scored(generator, *_):
        weights.append(generator.classifier.weight.detach().clone())
        return next(figures)

    monkeypatch.setattr(best, "cam_miou", scored)
    seen = []
    learn = torch.nn.Module.load_state_dict

    def loaded(self, state, *args, **kwargs):
        seen.append(state)
        return learn(self, state, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "load_state_dict", loaded)
    guide(runs, tmp_path / "run", "--method", "semples", "--match-epochs", "2", "--prompt-epochs", "1",
          "--keep-best", "val")
    printed = capsys.readouterr().out
    assert printed.index("kept epoch 1: CAM mIoU 70.00") < printed.index("background_prompts 1/1")
    assert printed.index("background_prompts 1/1") < printed.index("kept epoch 1: CAM mIoU 50.00")
    given = [state["classifier.weight"] for state in seen if "classifier.weight" in state]
    assert any(torch.equal(weight, weights[0]) for weight in given)
    assert json.loads((tmp_path / "run/args.json").read_text())["keep_best"] == "val"
