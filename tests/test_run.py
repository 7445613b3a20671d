"""Run folders: what they refuse and keep, their lock, result and inputs; fingerprints of files and folders."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from clipwsss.errors import InputError
from clipwsss.run import TAIL, Run, digest, fingerprint, fingerprint_inputs, refuse_overlap

ROOT = Path(__file__).resolve().parents[1]


def finished(folder, **config):
    """A run that has made its result."""
    run = Run(folder, config)
    run.result(miou=1.0)
    return run


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def refused(folder, message, *args, **options):
    before = snapshot(folder)
    with pytest.raises(InputError, match=message) as caught:
        Run(folder, *args, **options)
    assert "\n" not in str(caught.value) and snapshot(folder) == before


@pytest.mark.smoke
def test_a_run_is_not_started_over_or_continued_otherwise(tmp_path):
    finished(tmp_path, lr=1.0, workers=0)
    refused(tmp_path, "already holds a run; --resume continues it, --overwrite replaces it", {"lr": 1.0})
    refused(tmp_path, "--lr 2.0: the run in .* has 1.0; use the same value", {"lr": 2.0, "workers": 0}, resume=True)
    refused(tmp_path, "give one of them", {"lr": 1.0}, resume=True, overwrite=True)
    Run(tmp_path, {"lr": 1.0, "workers": 4}, resume=True)
    assert (tmp_path / "result.json").exists()


@pytest.mark.smoke
def test_overwriting_deletes_what_runs_make_and_nothing_else(tmp_path):
    run = finished(tmp_path, lr=1.0)
    for name in ("cams/a.npz", "masks/a.png", "generator.pt", "last_x.pt"):
        (run.out / name).parent.mkdir(exist_ok=True)
        (run.out / name).touch()
    own = [run.out / "notes.txt", run.out / "cams/notes.txt", run.out / "my.pt"]
    for path in own:
        path.write_text("mine")
    Run(tmp_path, {"lr": 2.0}, overwrite=True)
    assert json.loads((run.out / "args.json").read_text()) == {"lr": 2.0, "inputs": {}}
    assert set(snapshot(tmp_path)) == {run.out / "args.json", *own}


def test_a_run_that_made_nothing_may_be_started_again_with_other_settings(tmp_path):
    Run(tmp_path, {"lr": 1.0}).log(label="x", epoch=1)
    run = Run(tmp_path, {"lr": 2.0})
    assert not (run.out / "log.jsonl").exists()
    Run(tmp_path, {"lr": 3.0}, resume=True)
    assert json.loads((run.out / "args.json").read_text())["lr"] == 3.0


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "hand_made.png").write_text("hours of work")
    for options in ({}, {"overwrite": True}):
        refused(tmp_path, "hand_made.png was not made by a run of these scripts", {}, **options)
    other = tmp_path / "other"
    finished(other, stage="train_cam")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        refused(other, "holds a run of train_cam", {"stage": "train_seg"}, **options)
    refused(tmp_path / "empty", "holds no run to continue", {}, resume=True)
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "--out .*file: cannot write there: .*(exists|Not a directory)", {})


def test_damaged_settings_are_named(tmp_path):
    finished(tmp_path)
    for text in ("{", "[1, 2]", "", '{"inputs": [1]}', '{"inputs": {"cams": [1, 2]}}'):
        (tmp_path / "args.json").write_text(text)
        refused(tmp_path, "args.json: damaged; --overwrite starts anew", {}, resume=True)
    Run(tmp_path, {}, overwrite=True)
    finished(tmp_path)
    (tmp_path / "last_x.pt").write_bytes(b"torn")
    run = Run(tmp_path, {}, resume=True)
    with pytest.raises(InputError, match="last_x.pt: not a readable checkpoint"):
        run.restore("x", model=nn.Linear(1, 1))
    run.save("x", 3, model=nn.Linear(2, 1))
    with pytest.raises(InputError, match="last_x.pt: not a checkpoint of this run; --overwrite starts anew: .*size"):
        run.restore("x", model=nn.Linear(1, 1))
    with pytest.raises(InputError, match="last_x.pt: not a checkpoint of this run"):
        run.restore("x", network=nn.Linear(2, 1))


def test_one_process_at_a_time_and_none_after_its_death(tmp_path):
    code = ("import sys; from clipwsss.run import Run; run = Run(sys.argv[1], {}); print('here', flush=True); "
            "sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == "here\n"
        for options in ({}, {"resume": True}, {"overwrite": True}):
            refused(tmp_path, rf"process {other.pid} on .* since 20.* writes to this folder", {}, **options)
        other.kill()
    Run(tmp_path, {})


def test_leftovers_go_and_the_log_repeats_nothing(tmp_path):
    run = Run(tmp_path, {})
    for epoch in (1, 2, 3):
        run.log(label="x", epoch=epoch)
    run.log(label="y", epoch=1)
    run.save("x", 2, model=nn.Linear(1, 1))
    run.result(miou=1.0)
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"label": "x", "epo')
    (tmp_path / "cams").mkdir()
    for name in (".77.partial.last_x.pt", "cams/.77.partial.a.npz", ".hidden"):
        (tmp_path / name).touch()
    run = Run(tmp_path, {}, resume=True)
    assert run.restore("x", model=nn.Linear(1, 1)) == 2
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [{"label": "x", "epoch": 1}, {"label": "x", "epoch": 2}, {"label": "y", "epoch": 1}]
    assert [path.name for path in tmp_path.rglob("*partial*")] == [] and (tmp_path / ".hidden").exists()
    assert run.restore("y") == 0 and '"y"' not in (tmp_path / "log.jsonl").read_text()


def test_inputs_may_move_but_not_change(tmp_path, capsys):
    cams, moved = tmp_path / "cams", tmp_path / "moved"
    cams.mkdir()
    (cams / "a.npz").write_bytes(b"one")
    run = Run(tmp_path / "run", {"cams": str(cams)}, inputs=fingerprint_inputs({"cams": cams}))
    run.result(miou=1.0)
    cams.rename(moved)
    Run(tmp_path / "run", {"cams": str(moved)}, resume=True, inputs=fingerprint_inputs({"cams": moved}))
    (moved / "a.npz").write_bytes(b"two")
    refused(tmp_path / "run", "moved has changed since the run there began", {"cams": str(moved)}, resume=True,
            inputs=fingerprint_inputs({"cams": moved}))
    assert capsys.readouterr().out == ""
    (tmp_path / "run" / "masks").mkdir()
    fingerprint_inputs({"masks": tmp_path / "run" / "masks"})
    assert capsys.readouterr().out == f"note: {tmp_path}/run/masks was made from {moved}, which has changed since\n"
    (tmp_path / "run" / "args.json").write_text("no settings")
    fingerprint_inputs({"masks": tmp_path / "run" / "masks"})
    assert capsys.readouterr().out == "", "files of another origin may lie beside anything"


def test_results_are_kept_apart_from_what_is_read(tmp_path):
    inputs = {"init": tmp_path / "elsewhere" / "generator.pt", "cams": tmp_path / "elsewhere" / "cams"}
    for out, message in (("data", "contains the data folder"), (".", "contains the data folder"),
                         ("data/images", "lies in the data's folder"), ("data/images/deep/er", "lies in the data's folder"),
                         ("elsewhere", "contains .*generator.pt, which --init reads"),
                         ("elsewhere/cams", "contains .*cams, which --cams reads")):
        with pytest.raises(InputError, match=f"^--out .*{out}: {message}"):
            refuse_overlap("--out", tmp_path / out, [tmp_path / "data/images"], tmp_path / "data", inputs)
    for out in ("data/runs", "runs", "elsewhere/cams/next"):
        refuse_overlap("--out", tmp_path / out, [tmp_path / "data/images"], tmp_path / "data", inputs)
    with pytest.raises(InputError, match="^--json .*/data/images/a.json: lies in the data's folder"):
        refuse_overlap("--json", tmp_path / "data/images/a.json", [tmp_path / "data/images"])


def test_the_last_word_is_in_the_log_and_a_file_of_its_own(tmp_path):
    run = Run(tmp_path / "run", {})
    run.log(label="guide", epoch=1, loss=torch.tensor(0.5))
    run.result(miou=61.5, threshold=0.25)
    assert json.loads((run.out / "result.json").read_text()) == {"miou": 61.5, "threshold": 0.25}
    lines = [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]
    assert lines == [{"label": "guide", "epoch": 1, "loss": 0.5},
                     {"label": "result", "miou": 61.5, "threshold": 0.25}]
    Run(tmp_path / "run", {}, overwrite=True)
    assert not (run.out / "result.json").exists() and not (run.out / "log.jsonl").exists()


def test_scalars_for_tensorboard(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = Run(tmp_path, {"tensorboard": True})
    for epoch in (1, 2):
        run.log(label="guide", epoch=epoch, loss=0.5 / epoch)
    run.result(miou=61.5, images=8)
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"guide/loss", "result/miou"}
    assert [(item.step, item.value) for item in events.Scalars("guide/loss")] == [(1, 0.5), (2, 0.25)]


def test_tensorboard_without_its_package_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="tensorboard"):
        Run(tmp_path / "out", {"tensorboard": True})
    assert not (tmp_path / "out").exists()


def test_a_file_is_known_by_its_size_and_end(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"a" * 3 * TAIL)
    two.write_bytes(b"a" * 3 * TAIL)
    os.utime(two, (1, 1))
    assert fingerprint(one) == fingerprint(str(two)) and len(fingerprint(one)) == 16
    two.write_bytes(b"a" * (3 * TAIL - 1) + b"b")
    assert fingerprint(one) != fingerprint(two)
    two.write_bytes(b"a" * (3 * TAIL + 1))
    assert fingerprint(one) != fingerprint(two)


def test_a_folder_is_its_visible_files(tmp_path):
    folder = tmp_path / "cams"
    (folder / "deeper").mkdir(parents=True)
    empty = fingerprint(folder)
    for name in ("b", "a"):
        (folder / name).write_text(name)
    both = fingerprint(folder)
    (folder / ".hidden").write_text("x")
    (folder / "deeper" / "c").write_text("x")
    assert fingerprint(folder) == both != empty
    folder.rename(tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == both
    (tmp_path / "moved" / "b").rename(tmp_path / "moved" / "c")
    assert fingerprint(tmp_path / "moved") != both


def test_values_have_borders():
    assert digest([1, 23]) != digest([12, 3]) and digest(["a", None]) == digest(("a", None))
