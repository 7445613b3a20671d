"""Faults of the machine, files that go bad, closed pipes: one line each, and finished files stay."""
import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from clipwsss.datasets import TagDataset
from clipwsss.errors import run_script
from conftest import ROOT
from finished_runs import BASE, cut, snapshot


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
        assert "the system ended a process that loads data" in stopped(capsys, "train_cam", [*flags, "--workers", "1", "--overwrite"])
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


def test_a_closed_pipe_and_ctrl_c_leave_no_traceback(finished, tmp_path):
    with subprocess.Popen([sys.executable, ROOT / "eval.py", *BASE["eval"]], cwd=finished, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as script:
        script.stdout.close()  # as `| head -0` does
        told = script.stderr.read()
    assert script.returncode == 141 and told == "the reader of the output has closed it; finished files are kept\n"
    # A shell that starts pytest in the background lets it ignore Ctrl-C, and the script would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-u", ROOT / "train_seg.py", *BASE["train_seg"], "--epochs", "1000", "--out", tmp_path]
    with subprocess.Popen(command, cwd=finished, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        signal.signal(signal.SIGINT, before)
        while "train_seg 2/1000 " not in script.stdout.readline():  # the first checkpoint is written
            assert script.poll() is None
        script.send_signal(signal.SIGINT)
        told = script.communicate()[1]
    assert script.returncode == 130 and told == ("interrupted; finished files are kept. To continue, run the same "
                                                 "command again, with --resume where the script has it\n")
    assert (tmp_path / "last_train_seg.pt").is_file() and not list(tmp_path.glob("*partial*"))
