"""Interruption inside an epoch: every script's training goes on exactly, and the last words tell from where."""
import importlib

import pytest
import torch
from finished_runs import BASE, RUNS
from test_training import same, train

from clipwsss import training
from clipwsss.errors import run_script
from clipwsss.files import load_weights
from clipwsss.run import Run


@pytest.fixture
def cut_after(monkeypatch):
    """A function that has every step write a checkpoint, and Ctrl-C come after so many; None: never."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", float("inf"))
    save = Run.save

    def cut(count):
        written = []

        def stop_or_save(run, *arguments, **stateful):
            if len(written) == count:
                raise KeyboardInterrupt
            save(run, *arguments, **stateful)
            written.append(arguments)

        monkeypatch.setattr(Run, "save", stop_or_save)
        return written

    return cut


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"steps": 5}, {"workers": 1}])
def test_training_goes_on_inside_an_epoch(tmp_path, cut_after, capsys, changes):
    """Cut after each checkpoint in turn: weights, dropout, order of the images, log and diary are those of one run."""
    checkpoints = cut_after(None)
    whole, log, diary = train(tmp_path / "whole", 2, **changes)
    total = len(checkpoints)
    assert total > 4 or changes
    for count in ([total - 3] if "workers" in changes else range(1, total)):
        folder = tmp_path / f"cut{count}"
        cut_after(count)
        with pytest.raises(KeyboardInterrupt):
            train(folder, 2, **changes)
        told = capsys.readouterr().out
        position = load_weights(folder / "last_points.pt")
        batches = position["position"]["batches"]
        place = f"step {batches} of epoch {position['epoch'] + 1}" if batches else f"epoch {position['epoch']}"
        assert f"points: with --resume this training goes on after {place}\n" in told
        cut_after(None)
        resumed, log2, diary2 = train(folder, 2, resume=True, **changes)
        assert f"points: goes on after {place}\n" in capsys.readouterr().out
        assert same(whole, resumed) and log == log2 and diary.epochs == diary2.epochs, count


def test_short_epochs_have_a_checkpoint_at_their_end_alone(tmp_path, monkeypatch):
    written = []
    save = Run.save
    monkeypatch.setattr(Run, "save", lambda run, *arguments, **states: (written.append(arguments),
                                                                         save(run, *arguments, **states)))
    train(tmp_path, 2)
    assert written == [("points", 1), ("points", 2)]


SCRIPTS = {  # title: script, further flags, its checkpoint, its weights
    "resnet": ("train_cam", [], "last_train_cam.pt", "generator.pt"),
    "weaktr": ("train_cam", ["--generator", "weaktr", "--backbone", "deit_toy"], "last_train_cam.pt", "generator.pt"),
    "words": ("train_prompt", ["--class-prompt", "word", "--reselect-every", "1"], "last_guide.pt", "generator.pt"),
    "irn": ("make_pseudo", ["--refine", "irn", "--crop-size", "64", "--radius", "3"], "last_irn_network.pt", "affinity.pt"),
    "segmenter": ("train_seg", [], "last_train_seg.pt", "segmenter.pt"),
}


@pytest.mark.parametrize("title", SCRIPTS)
def test_every_script_goes_on_inside_an_epoch(copied, cut_after, capsys, title):
    script, flags, checkpoint, weights = SCRIPTS[title]
    base = [word for word in BASE[script] if title != "weaktr" or word not in ("--output-stride", "4")]
    main = importlib.import_module(script).main
    cut_after(None)
    assert main([*base, *flags, "--out", "whole"]) == 0
    cut_after(2)
    assert run_script(lambda: main([*base, *flags, "--out", "cut"])) == 130
    assert "goes on after step 2 of epoch 1\n" in capsys.readouterr().out
    assert load_weights(f"cut/{checkpoint}")["position"]["batches"] == 2
    cut_after(None)
    assert main([*base, *flags, "--out", "cut", "--resume"]) == 0
    states = [load_weights(f"{folder}/{weights}")["state_dict"] for folder in ("whole", "cut")]
    assert all(map(torch.equal, states[0].values(), states[1].values()))
    for name in (copied / "whole").glob("*cams/*"):
        assert name.read_bytes() == (copied / "cut" / name.relative_to(copied / "whole")).read_bytes()


def test_make_pseudo_takes_resume(copied, capsys):
    main = importlib.import_module("make_pseudo").main
    assert main([*BASE["make_pseudo"], "--resume"]) == 0
    assert run_script(lambda: main([*BASE["make_pseudo"], "--resume", "--out", "new"])) == 2
    assert "--resume: new holds no run to continue" in capsys.readouterr().err
    assert run_script(lambda: main([*BASE["make_pseudo"], "--resume", "--beta", "3", "--out", f"{RUNS}/make_pseudo"])) == 2
