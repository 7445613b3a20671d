"""The error users see is one line and status 2; other modules' errors become it; --quiet leaves errors alone."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipwsss.errors import InputError, input_errors, run_script
from clipwsss.progress import Progress


def failing(error: BaseException):
    def main():
        raise error
    return main


@pytest.mark.smoke
def test_what_users_and_machines_cause_is_one_line_and_status_2(capsys):
    memory = "out of memory; use smaller batches, crops or images"
    loader = "the system ended a process that loads data; use fewer --workers"
    for error, told in (
            (InputError("labels.csv:3: unknown class"), "labels.csv:3: unknown class"),
            (FileNotFoundError("labels.csv"), "labels.csv"),
            (ModuleNotFoundError("No module named 'transformers'"), "No module named 'transformers'"),
            (OSError(28, "No space left on device", "runs/a.npz"), "runs/a.npz: No space left on device"),
            (PermissionError(13, "Permission denied"), "Permission denied"),
            (MemoryError(), memory),
            (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), loader),
            (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), loader),
            (RuntimeError("CUDA out of memory. Tried to allocate"), memory),
            (InputError("Caught InputError in DataLoader worker process 0.\nOriginal Traceback:\n  File x\n"
                        "clipwsss.errors.InputError: a.png: not a readable image"), "a.png: not a readable image")):
        assert run_script(failing(error)) == 2, error
        out, line = capsys.readouterr()
        assert out == "" and line.startswith(f"error: {told}") and line.count("\n") == 1, error


def test_success_interruption_and_faults_of_ours(capsys):
    assert run_script(lambda: None) == 0 and run_script(lambda: 3) == 3
    assert run_script(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ("interrupted; finished files are kept. To continue, run the same command again, "
                                       "with --resume where the script has it\n")
    for fault in (ValueError("a fault"), RuntimeError("mat1 and mat2 shapes cannot be multiplied")):
        with pytest.raises(type(fault)) as caught:
            run_script(failing(fault))
        assert caught.value is fault


def test_a_leafs_error_becomes_the_users():
    with pytest.raises(InputError, match="^--mask: sizes differ$") as caught, input_errors("--mask: "):
        raise ValueError("sizes differ")
    assert isinstance(caught.value.__cause__, ValueError)
    inner = InputError("a.png: no such mask")
    with pytest.raises(InputError) as caught, input_errors("--mask: "):
        raise inner
    assert caught.value is inner, "what names its file already stays as it is"
    with pytest.raises(TypeError), input_errors("--mask: "):
        raise TypeError
    for kind in (TypeError, ValueError):
        with pytest.raises(InputError, match="^a: no list$"), input_errors("a: ", TypeError, ValueError):
            raise kind("no list")


def test_quiet_discards_all_but_warnings_and_errors(capsys, monkeypatch):
    def talkative():
        print("a line")
        print("skipped: b.png", file=sys.stderr)
        progress = Progress("draw", 2)
        progress.update(1)
        progress.close()
        raise InputError("a.png: no such image")

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys, "argv", ["train_seg.py", "--quiet"])
    assert run_script(talkative) == 2
    assert capsys.readouterr() == ("", "skipped: b.png\nerror: a.png: no such image\n")
    monkeypatch.setattr(sys, "argv", ["train_seg.py"])
    assert run_script(talkative) == 2
    out, err = capsys.readouterr()
    assert out.startswith("a line\n\rdraw  1/2 images") and "draw  1/1 images" in out
    assert err == "skipped: b.png\nerror: a.png: no such image\n"


def test_what_is_printed_never_fails():
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from clipwsss.errors import quiet, run_script\n"
            "def main():\n    print('caf\\u00e9 \\u732b \\udce9')\n    with quiet():\n        print('\\u732b \\udce9')\n"
            "run_script(main)")
    root = str(Path(__file__).resolve().parents[1])
    for encoding, shown in (("ascii", b"caf\\xe9 \\u732b \\udce9"), ("gbk", "café 猫 ".encode("gbk") + b"\\udce9")):
        environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "0"}
        done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, env=environment)
        assert done.returncode == 0 and done.stdout.strip() == shown, (encoding, done.stderr)
