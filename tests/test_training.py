"""Run folders, atomic files, exact resumption, and the errors that stop a run."""
import json

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from clipwsss.datasets import Sample
from clipwsss.progress import Progress
from clipwsss.training import Run, fit, make_optimizer, make_scheduler, pick_device, seed_everything
from clipwsss.files import atomic_path, load_weights
from clipwsss.datasets.loaders import make_loader
from clipwsss.errors import InputError, run_script

CPU = torch.device("cpu")


class Points(Dataset):
    """Ten tiny 'images' whose transform draws noise, as augmentation does."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        noise = torch.rand(1, 2, 3)
        return Sample(f"p{index}", torch.full((1, 2, 3), float(index)) + noise, torch.tensor([index % 2.0]), None)


def train(folder, epochs, resume=False, stop_after=None, bad=False, workers=0):
    seed_everything(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 1), nn.Dropout(0.5))
    loader = make_loader(Points(), 4, workers=workers, seed=3)
    optimizer = make_optimizer([{"params": model.parameters()}], "sgd", 0.01, 1e-4)
    scheduler = make_scheduler(optimizer, "poly", epochs * len(loader))
    run = Run(folder, {"epochs": epochs, "resume": resume}, resume)

    def step(batch):
        loss = (model(batch.images)[:, 0] - batch.labels[:, 0]).square().mean()
        return {"loss": loss * (float("nan") if bad else 1), "twice": 2 * loss.detach()}

    def on_epoch(epoch):
        if epoch == stop_after:
            raise KeyboardInterrupt

    fit(run, loader, step, {"model": model}, optimizer, scheduler, epochs, CPU, 3, on_epoch=on_epoch)
    return model.state_dict(), [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_resumed_run_equals_uninterrupted_one(tmp_path):
    whole, log = train(tmp_path / "whole", 4)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 4, stop_after=2)
    resumed, log2 = train(tmp_path / "cut", 4, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert log == log2 and [row["epoch"] for row in log] == [1, 2, 3, 4]
    assert log[0]["twice"] == pytest.approx(2 * log[0]["loss"])


def test_resumed_run_is_exact_with_worker_processes(tmp_path):
    whole, _ = train(tmp_path / "whole", 2, workers=1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 2, stop_after=1, workers=1)
    resumed, _ = train(tmp_path / "cut", 2, resume=True, workers=1)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_non_finite_loss_names_the_images(tmp_path):
    with pytest.raises(InputError, match=r"not finite.* on images p\d, p\d, p\d, p\d"):
        train(tmp_path / "run", 1, bad=True)


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


def test_atomic_path_leaves_nothing_half_written(tmp_path):
    target = tmp_path / "folder" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_bad_checkpoints_are_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_weights(tmp_path / "none.pt")
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match="torn.pt: not a readable checkpoint"):
        load_weights(tmp_path / "torn.pt")
    torch.save(Points(), tmp_path / "code.pt")
    with pytest.raises(InputError, match="code.pt: not a readable checkpoint"):
        load_weights(tmp_path / "code.pt")
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    with pytest.raises(InputError, match="tensor.pt: not a checkpoint but a Tensor"):
        load_weights(tmp_path / "tensor.pt")


@pytest.mark.parametrize("name,expected", [("poly", [1, 0.75 ** 0.9, 0.5 ** 0.9]), ("cosine", [1, 0.853553, 0.5]),
                                           ("constant", [1, 1, 1])])
def test_schedules(name, expected):
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}], "sgd", 1.0, 0.0)
    scheduler = make_scheduler(optimizer, name, 4)
    found = []
    for _ in range(3):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(expected, abs=1e-6)


def test_sgd_momentum_is_momentum_and_not_weight_decay():
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}], "sgd", 1.0, 1e-4, momentum=0.9)
    assert optimizer.param_groups[0]["momentum"] == 0.9 and optimizer.param_groups[0]["weight_decay"] == 1e-4


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    def run(batch_size, accumulate, folder):
        seed_everything(0)
        model = nn.Linear(1, 1)
        data = [Sample(f"{i}", torch.full((1, 1, 1), i / 8), torch.tensor([1.0]), None) for i in range(8)]
        loader = make_loader(data, batch_size, shuffle=False)
        optimizer = make_optimizer([{"params": model.parameters()}], "sgd", 0.1, 0.0)
        fit(Run(folder, {}), loader, lambda b: {"loss": (model(b.images[:, 0, 0]) - b.labels).square().mean()},
            {"m": model}, optimizer, make_scheduler(optimizer, "constant", 1), 1, CPU, 0, accumulate=accumulate)
        return model.weight.detach()

    assert torch.allclose(run(8, 1, tmp_path / "a"), run(2, 4, tmp_path / "b"), atol=1e-6)


def test_progress_without_terminal_prints_one_line_with_rate(capsys):
    progress = Progress("train", 20)
    progress.update(20, loss=1.0)
    assert capsys.readouterr() == ("", "")
    progress.close(loss=torch.tensor(0.5))
    assert "train  20/20 images  loss 0.5000" in capsys.readouterr().out


def test_device_and_script_errors(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(InputError, match="no CUDA device"):
        pick_device("cuda")

    def fail():
        raise InputError("labels.csv:3: unknown class")

    assert run_script(fail) == 2 and capsys.readouterr().err == "error: labels.csv:3: unknown class\n"
    assert run_script(lambda: None) == 0
