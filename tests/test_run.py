"""Run folders: what they refuse, what they keep, and their last word."""
import json

import pytest
import torch

from clipwsss.errors import InputError
from clipwsss.run import Run


def test_run_folder_refuses_overwrite_and_changed_settings(tmp_path):
    Run(tmp_path / "run", {"lr": 1.0, "workers": 0})
    with pytest.raises(InputError, match="--resume goes on, --overwrite starts anew"):
        Run(tmp_path / "run", {"lr": 1.0})
    with pytest.raises(InputError, match="--lr was 1.0"):
        Run(tmp_path / "run", {"lr": 2.0, "workers": 0}, resume=True)
    (tmp_path / "run" / "cams").mkdir()
    (tmp_path / "run" / "cams" / "a.npz").touch()
    Run(tmp_path / "run", {"lr": 1.0, "workers": 4}, resume=True)
    assert (tmp_path / "run" / "cams" / "a.npz").exists()
    Run(tmp_path / "run", {"lr": 2.0}, overwrite=True)
    assert not (tmp_path / "run" / "cams" / "a.npz").exists()
    assert json.loads((tmp_path / "run" / "args.json").read_text()) == {"lr": 2.0}


def test_the_last_word_is_in_the_log_and_a_file_of_its_own(tmp_path):
    run = Run(tmp_path / "run", {})
    run.log(label="guide", epoch=1, loss=torch.tensor(0.5))
    run.result(miou=61.5, threshold=0.25)
    assert json.loads(run.path("result.json").read_text()) == {"miou": 61.5, "threshold": 0.25}
    lines = [json.loads(line) for line in run.path("log.jsonl").read_text().splitlines()]
    assert lines == [{"label": "guide", "epoch": 1, "loss": 0.5},
                     {"label": "result", "miou": 61.5, "threshold": 0.25}]
    Run(tmp_path / "run", {}, overwrite=True)
    assert not run.path("result.json").exists() and not run.path("log.jsonl").exists()
