"""Faults of the machine, files that go bad, closed pipes: one line each, and finished files stay."""
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipwsss.datasets import TagDataset
from clipwsss.errors import run_script
from conftest import ROOT
from finished_runs import BASE, RUNS, cut, snapshot


def stopped(capsys, script, flags):
    assert run_script(lambda: importlib.import_module(script).main([*BASE[script], *flags])) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("error: ") == 1
    return error


def test_faults_of_the_machine_are_one_line(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    before = snapshot(finished)
    flags = ["--out", str(tmp_path / "run")]
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
        assert "MB are free; make room" in stopped(capsys, "train_cam", flags)
    with monkeypatch.context() as patched:
        def full(value, path):
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file")
        patched.setattr(torch, "save", full)
        assert "last_train_cam.pt: not written, disk full?" in stopped(capsys, "train_cam", flags)
    with monkeypatch.context() as patched:
        def full(*_, **__):
            raise OSError(28, "No space left on device", "cams/im0.npz")
        patched.setattr(np, "savez", full)
        assert "cams/im0.npz: No space left on device" in stopped(capsys, "train_cam", flags)
    with monkeypatch.context() as patched:
        load = TagDataset.load_image

        def killed(self, index):
            if torch.utils.data.get_worker_info():
                os.kill(os.getpid(), signal.SIGKILL)
            return load(self, index)
        patched.setattr(TagDataset, "load_image", killed)
        assert "a loading process was killed" in stopped(capsys, "train_cam", [*flags, "--workers", "1", "--overwrite"])
    assert not list(tmp_path.rglob("*partial*")) and snapshot(finished) == before


def test_a_file_that_goes_bad_later_is_named_where_it_is_read(finished, copied, monkeypatch, capsys):
    import train_cam
    begin = train_cam.start_run

    def spoiled(*args, **kwargs):
        cut("data/images/im1.png")(copied)
        return begin(*args, **kwargs)
    monkeypatch.setattr(train_cam, "start_run", spoiled)
    for workers in ("0", "1"):
        error = stopped(capsys, "train_cam", ["--out", f"new{workers}", "--workers", workers, "--val-split", ""])
        assert error.startswith("error: data/images/im1.png: not a readable image") and error.count("\n") == 1
        shutil.copy(finished / "data/images/im1.png", copied / "data/images/im1.png")


def test_files_are_checked_once(finished, monkeypatch):
    monkeypatch.chdir(finished)
    known = json.loads(Path(f"{RUNS}/checked.json").read_text())
    assert len(known) == 6 + 6 + 6  # images, true masks, pseudo masks
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: opened.append(path) or real(path, *rest))
    from clipwsss.datasets import build_dataset
    from clipwsss.datasets.reading import Checked
    memory = Checked(Path(f"{RUNS}/checked.json"))
    data = build_dataset("folder", "data", "train", checked=memory)
    assert not opened and data.image_size(0) == (40, 48)
    os.utime("data/images/im2.png")
    build_dataset("folder", "data", "train", checked=memory)
    assert [str(path) for path in opened] == ["data/images/im2.png"]


def test_a_closed_pipe_and_ctrl_c_leave_no_traceback(finished):
    with subprocess.Popen([sys.executable, ROOT / "eval.py", *BASE["eval"]], cwd=finished, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as script:
        script.stdout.close()  # as `| head -0` does
        told = script.stderr.read()
    assert script.returncode == 141 and told == "output closed; finished files are kept\n"
    with subprocess.Popen([sys.executable, ROOT / "train_cam.py", *BASE["train_cam"]], cwd=finished,
                          stderr=subprocess.PIPE, text=True) as script:
        while "torch" not in Path(f"/proc/{script.pid}/maps").read_text():  # it imports
            time.sleep(0.01)
        script.send_signal(signal.SIGINT)
        assert "Traceback" not in script.stderr.read()
    assert script.returncode in (-signal.SIGINT, 130)
