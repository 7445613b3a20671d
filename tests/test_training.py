"""Exact resumption, schedules and accumulation, and the errors that stop a run."""
import copy
import json
import shutil

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from clipwsss.datasets import Sample
from clipwsss.datasets.loaders import make_loader
from clipwsss.errors import InputError
from clipwsss.networks.batch_norm import fuse_batch_norm
from clipwsss.run import Run
from clipwsss.training import (Training, compile_networks, fit, make_optimizer, make_scheduler, pick_device,
                               seed_everything, use_bf16)

CPU = torch.device("cpu")


class Points(Dataset):
    """Ten tiny 'images' whose transform draws noise, as augmentation does."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        noise = torch.rand(1, 2, 3)
        image = torch.full((1, 2, 3), float(index)) + noise
        return Sample(f"p{index}", image, torch.tensor([index % 2.0]), None)


class Network(nn.Sequential):
    """A tiny network that notes the epochs it is told, and can be interrupted where one begins."""

    def __init__(self, stop_at=None):
        super().__init__(nn.Flatten(), nn.Linear(6, 1), nn.Dropout(0.5))
        self.stop_at, self.told = stop_at, []

    def start_epoch(self, epoch):
        self.told.append(epoch)
        if epoch == self.stop_at:
            raise KeyboardInterrupt


def train(folder, epochs, resume=False, stop_at=None, bad=False, workers=0, **changes):
    seed_everything(3)
    model, loader = Network(stop_at), make_loader(Points(), 4, workers=workers, seed=3)
    run = Run(folder, {"epochs": epochs, "resume": resume}, resume)

    def step(batch):
        loss = (model(batch.images)[:, 0] - batch.labels[:, 0]).square().mean()
        return {"loss": loss * (float("nan") if bad else 1), "twice": 2 * loss.detach()}

    training = Training("points", epochs, lr=0.01, weight_decay=1e-4, seed=3, **changes)
    fit(run, loader, step, {"model": model}, [{"params": model.parameters()}], training)
    return model, [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same(one, other):
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_resumed_run_equals_uninterrupted_one(tmp_path):
    whole, log = train(tmp_path / "whole", 4)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 4, stop_at=2)
    resumed, log2 = train(tmp_path / "cut", 4, resume=True)
    assert same(whole, resumed) and whole.told == [0, 1, 2, 3] and resumed.told == [2, 3]
    assert log == log2 and [row["epoch"] for row in log] == [1, 2, 3, 4]
    assert log[0]["label"] == "points" and log[0]["twice"] == pytest.approx(2 * log[0]["loss"])


def test_resumed_run_is_exact_with_worker_processes(tmp_path):
    whole, _ = train(tmp_path / "whole", 2, workers=1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 2, stop_at=1, workers=1)
    resumed, _ = train(tmp_path / "cut", 2, resume=True, workers=1)
    assert same(whole, resumed)


def test_training_ends_after_so_many_steps(tmp_path):
    short, log = train(tmp_path / "short", 1, steps=2, schedule="constant", momentum=0.0)
    again, _ = train(tmp_path / "again", 1, steps=2, schedule="constant", momentum=0.0)
    longer, _ = train(tmp_path / "longer", 1, schedule="constant", momentum=0.0)
    assert same(short, again) and not same(short, longer) and len(log) == 1


def test_a_clipped_gradient_makes_no_larger_step(tmp_path):
    seed_everything(3)
    start = Network()
    options = dict(steps=1, momentum=0.0, schedule="constant", clip_norm=0.5)
    clipped, _ = train(tmp_path / "run", 1, **options)
    moved = torch.cat([(a - b).flatten() for a, b in zip(clipped.parameters(), start.parameters())])
    decay = 0.01 * 1e-4 * 3  # weight decay moves too, by less than this
    assert moved.norm().item() == pytest.approx(0.01 * 0.5, abs=decay)


def test_non_finite_loss_names_the_images(tmp_path):
    with pytest.raises(InputError, match=r"not finite.* on images p\d, p\d, p\d, p\d"):
        train(tmp_path / "run", 1, bad=True)


@pytest.mark.parametrize("name, expected", [
    ("poly", [1, 0.75 ** 0.9, 0.5 ** 0.9]), ("cosine", [1, 0.853553, 0.5]), ("constant", [1, 1, 1])])
def test_schedules(name, expected):
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}], Training("x", 1, lr=1.0))
    scheduler = make_scheduler(optimizer, name, 4)
    rates = []
    for _ in range(3):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected, abs=1e-6)


def test_warmup_is_linear():
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}], Training("x", 1, lr=1.0))
    factor = make_scheduler(optimizer, "constant", 10, warmup=4).lr_lambdas[0]
    assert [factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_sgd_momentum_is_momentum_and_not_weight_decay():
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": []}]
    optimizer = make_optimizer(groups, Training("x", 1, lr=1.0, weight_decay=1e-4))
    assert len(optimizer.param_groups) == 1, "a group without parameters is left out"
    assert optimizer.param_groups[0]["momentum"] == 0.9 and optimizer.param_groups[0]["weight_decay"] == 1e-4
    groups[0].update(lr=0.5, weight_decay=0.0)
    optimizer = make_optimizer(groups, Training("x", 1, lr=1.0, optimizer="adamw", weight_decay=1e-4))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["weight_decay"] == 0.0


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    def run(batch_size, accumulate, folder):
        seed_everything(0)
        model = nn.Linear(1, 1)
        data = [Sample(f"{i}", torch.full((1, 1, 1), i / 8), torch.tensor([1.0]), None) for i in range(8)]
        fit(Run(folder, {}), make_loader(data, batch_size, shuffle=False),
            lambda batch: {"loss": (model(batch.images[:, 0, 0]) - batch.labels).square().mean()},
            {"m": model}, [{"params": model.parameters()}],
            Training("x", 1, lr=0.1, schedule="constant", accumulate=accumulate))
        return model.weight.detach()

    assert torch.allclose(run(8, 1, tmp_path / "a"), run(2, 4, tmp_path / "b"), atol=1e-6)


def test_devices_and_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(InputError, match="no CUDA device"):
        pick_device("cuda")
    assert use_bf16("bf16", CPU) and not use_bf16("fp32", CPU) and use_bf16("auto", CPU) in (True, False)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_networks_train_alike_and_their_copies_are_plain(tmp_path):
    def weights(folder, compiled):
        seed_everything(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        if compiled:
            compile_networks(network)
        fit(Run(tmp_path / folder, {}), make_loader(Points(), 4, workers=0, seed=3),
            lambda batch: {"loss": network(batch.images).square().mean()}, {"network": network},
            [{"params": network.parameters()}], Training("points", 2, lr=0.01))
        assert (network._compiled_call_impl is not None) == compiled
        for plain in (copy.deepcopy(network), fuse_batch_norm(network)):
            assert plain._compiled_call_impl is None
        return network.state_dict()

    plain, compiled = weights("plain", False), weights("compiled", True)
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-4)


def test_compilation_that_does_not_work_is_one_line(monkeypatch):
    def broken(function):
        raise RuntimeError("No working C++ compiler\nfurther lines")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(InputError, match=r"^--compile: .*\(No working C\+\+ compiler\); leave it out$"):
        compile_networks(nn.Linear(2, 1))
