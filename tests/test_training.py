"""The loss joined over processes, exact resumption, schedules and accumulation, and the errors that stop a run."""
import copy
import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from clipwsss import training
from clipwsss.datasets import Sample
from clipwsss.datasets.loaders import make_loader
from clipwsss.errors import InputError
from clipwsss.networks.resnet import fuse_batch_norm
from clipwsss.run import Run
from clipwsss.training import (Training, refuse_lone_values, compile_networks, fit, joined_loss, make_optimizer, make_scheduler,
                               pick_device, seed_everything, use_bf16)

CPU = torch.device("cpu")


class Points(Dataset):
    """Ten tiny 'images' whose transform draws noise, as augmentation does."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        noise = torch.rand(1, 2, 3)
        image = torch.full((1, 2, 3), float(index)) + noise
        return Sample(f"p{index}", image, torch.tensor([index % 2.0]), None)


class Diary:
    """The epochs that `fit` has told of: a state to be kept in checkpoints."""

    def __init__(self):
        self.epochs = []

    def state_dict(self):
        return {"epochs": list(self.epochs)}

    def load_state_dict(self, state):
        self.epochs[:] = state["epochs"]


def tiny_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 1), nn.Dropout(0.5))


def train(folder, epochs, resume=False, stop_at=None, bad=False, workers=0, **changes):
    """Train a tiny network, interrupted where the epoch `stop_at` begins: (network, lines of the log, diary)."""
    seed_everything(3)
    model = tiny_network()
    diary = Diary()
    loader = make_loader(Points(), 4, workers=workers, seed=3)
    run = Run(folder, {"epochs": epochs, "resume": resume}, resume)

    def loss(batch):
        if loader.sampler.epoch == stop_at:
            raise KeyboardInterrupt
        total = (model(batch.images)[:, 0] - batch.labels[:, 0]).square().sum()
        if bad:
            total = total * float("nan")
        return {"error": (1.0, total, len(batch.names)), "twice": (0.0, 2 * total.detach(), len(batch.names))}

    fit(run, loader, loss, {"model": model}, [{"params": model.parameters()}],
        Training("points", epochs, lr=0.01, weight_decay=1e-4, seed=3, **changes),
        after_epoch=diary.epochs.append, kept={"diary": diary})
    return model, [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()], diary


def same(one, other):
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.mark.smoke
def test_the_loss_is_the_weighted_sum_of_means_by_hand():
    """2 * (6 / 3) + 0.5 * 4 + 3 * (nothing) = 6; the gradient reaches each total by weight / count."""
    mean = torch.tensor(6.0, requires_grad=True)
    plain_sum = torch.tensor(4.0, requires_grad=True)
    empty = torch.tensor(0.0, requires_grad=True)
    means = joined_loss({"mean": (2.0, mean, 3), "sum": (0.5, plain_sum, None),
                         "empty": (3.0, empty, torch.tensor(0))})
    assert {name: value.item() for name, value in means.items()} == {"loss": 6.0, "mean": 2.0, "sum": 4.0, "empty": 0.0}
    assert next(iter(means)) == "loss"
    means["loss"].backward()
    assert mean.grad.item() == pytest.approx(2 / 3) and plain_sum.grad.item() == 0.5
    alone = joined_loss({"error": (0.5, torch.tensor(6.0), torch.tensor(3))})
    assert {name: value.item() for name, value in alone.items()} == {"loss": 1.0}, "a single term has no other name"


@pytest.mark.smoke
def test_the_losses_of_two_processes_average_to_the_loss_of_all_items(monkeypatch):
    """Totals 6 and 2 over 3 items and 1 are a mean of 2; plain sums 4 and 1 are 5; one process has no third item."""
    monkeypatch.setattr(training, "world_size", lambda: 2)
    losses = []
    counts = {0: (3.0, 2.0), 1: (1.0, 0.0)}
    for process, totals in ((0, (6.0, 4.0, 8.0)), (1, (2.0, 1.0, 0.0))):
        others = iter(counts[1 - process])
        monkeypatch.setattr(training, "mean_over_processes", lambda count: (count + next(others)) / 2)
        first, second, third = (torch.tensor(total) for total in totals)
        losses.append(joined_loss({"mean": (2.0, first, counts[process][0]), "sum": (0.5, second, None),
                                   "rare": (1.0, third, counts[process][1])}))
    joined = {name: (losses[0][name] + losses[1][name]).item() / 2 for name in losses[0]}
    assert joined == {"loss": 2 * 2.0 + 0.5 * 5.0 + 4.0, "mean": 2.0, "sum": 5.0, "rare": 4.0}


@pytest.mark.smoke
def test_resumed_run_equals_uninterrupted_one(tmp_path):
    whole, log, diary = train(tmp_path / "whole", 4)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 4, stop_at=2)
    resumed, log2, diary2 = train(tmp_path / "cut", 4, resume=True)
    assert same(whole, resumed)
    assert diary.epochs == diary2.epochs == [0, 1, 2, 3], "what is kept comes back from the checkpoint"
    assert log == log2 and [row["epoch"] for row in log] == [1, 2, 3, 4]
    assert log[0]["label"] == "points" and log[0]["loss"] == log[0]["error"]
    assert log[0]["twice"] == pytest.approx(2 * log[0]["loss"])


def test_resumed_run_is_exact_with_worker_processes(tmp_path):
    whole, _, _ = train(tmp_path / "whole", 2, workers=1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 2, stop_at=1, workers=1)
    resumed, _, _ = train(tmp_path / "cut", 2, resume=True, workers=1)
    assert same(whole, resumed)


def test_training_ends_after_so_many_steps(tmp_path):
    short, log, _ = train(tmp_path / "short", 1, steps=2, schedule="constant", momentum=0.0)
    again, _, _ = train(tmp_path / "again", 1, steps=2, schedule="constant", momentum=0.0)
    longer, _, _ = train(tmp_path / "longer", 1, schedule="constant", momentum=0.0)
    assert same(short, again) and not same(short, longer) and len(log) == 1


def test_a_clipped_gradient_makes_no_larger_step(tmp_path):
    seed_everything(3)
    start = tiny_network()
    options = dict(steps=1, momentum=0.0, schedule="constant", clip_norm=0.5)
    clipped, _, _ = train(tmp_path / "run", 1, **options)
    moved = torch.cat([(a - b).flatten() for a, b in zip(clipped.parameters(), start.parameters())])
    decay = 0.01 * 1e-4 * 3  # weight decay moves too, by less than this
    assert moved.norm().item() == pytest.approx(0.01 * 0.5, abs=decay)


def test_non_finite_loss_names_the_images(tmp_path):
    with pytest.raises(InputError, match=r"not finite.* on images p\d, p\d, p\d, p\d"):
        train(tmp_path / "run", 1, bad=True)


def test_schedules_and_linear_warmup():
    for name, expected in (("poly", [1, 0.75 ** 0.9, 0.5 ** 0.9]), ("cosine", [1, 0.853553, 0.5]),
                           ("constant", [1, 1, 1])):
        optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}], Training("x", 1, lr=1.0))
        scheduler = make_scheduler(optimizer, name, 4)
        rates = []
        for _ in range(3):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        assert rates == pytest.approx(expected, abs=1e-6), name
    factor = make_scheduler(optimizer, "cosine", 4, end=0.2).lr_lambdas[0]  # WeakTr's ends above zero
    assert [factor(step) for step in (0, 2, 4, 9)] == pytest.approx([1, 0.6, 0.2, 0.2])
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
            lambda batch: {"error": (1.0, (model(batch.images[:, 0, 0]) - batch.labels).square().sum(),
                                     len(batch.names))},
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


def test_compiled_networks_train_alike_and_their_copies_are_plain(tmp_path, monkeypatch):
    # torch's default backend takes a minute to compile C++; which backend runs the graphs makes no difference here.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))

    def weights(folder, compiled):
        seed_everything(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        if compiled:
            compile_networks(network)
        fit(Run(tmp_path / folder, {}), make_loader(Points(), 4, workers=0, seed=3),
            lambda batch: {"size": (1.0, network(batch.images).square().mean(), 1)}, {"network": network},
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
    with pytest.raises(InputError, match=r"^--compile: .*\(No working C\+\+ compiler\)$"):
        compile_networks(nn.Linear(2, 1))


def test_batch_norm_over_one_value_is_refused_before_training():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))

        def classify(self, images):
            return self.pool(self.body(images))

    network = Pooled().eval()
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    told = r"--batch-size 1: with 1 image of 32 x 32 pixels in a batch of a process, .*use --batch-size 2 or more"
    with pytest.raises(InputError, match=told):
        refuse_lone_values(network, "classify", make_loader(Points(), 1), 32)
    for loader in (make_loader(Points(), 2), make_loader(Points(), len(Points()) - 1, drop_last=True)):
        refuse_lone_values(network, "classify", loader, 32)
    with pytest.raises(InputError, match="with 1 image of 32"):  # the last batch has one image
        refuse_lone_values(network, "classify", make_loader(Points(), len(Points()) - 1), 32)
    assert not network.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.pool.eval()
    network.train = lambda mode=True: network  # batch norm that is frozen
    refuse_lone_values(network, "classify", make_loader(Points(), 1), 32)
    with pytest.raises(InputError, match="with 1 image of 2 x 2"):  # the body's maps have one position
        network.body.train()
        refuse_lone_values(network, "classify", make_loader(Points(), 1), 2)
