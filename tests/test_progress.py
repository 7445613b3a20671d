"""The progress line: one line at the end without a terminal, redrawn with one."""
import os
import sys

import pytest
import torch

from clipwsss.progress import Progress


def test_without_a_terminal_one_line_with_rate(capsys):
    progress = Progress("train", 20)
    progress.update(20, loss=1.0)
    assert capsys.readouterr() == ("", "")
    progress.close(loss=torch.tensor(0.5))
    assert "train  20/20 images  loss 0.5000" in capsys.readouterr().out


def test_on_a_terminal_it_is_redrawn_and_says_what_is_left(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    progress = Progress("draw", 4, "scenes")
    progress.update(1, loss=torch.tensor(2.0))
    progress.update(1)  # within a fifth of a second: not drawn
    drawn = capsys.readouterr().err
    assert drawn.count("\r") == 1 and "draw  1/4 scenes  loss 2.0000" in drawn and "scenes/s" in drawn
    assert drawn.rstrip().endswith(" s left") and len(drawn) == 80
    progress.update(2)
    progress.close()
    end = capsys.readouterr()
    assert end.err == "\r" + " " * 79 + "\r" and end.out.startswith("draw  4/4 scenes") and "left" not in end.out


@pytest.mark.parametrize("width, shown", [
    (200, "guide 1/4  6/400 images  loss 12.3457  fg 0.5000  suppress 0.2500  2.0 images/s  197 s left"),
    (82, "guide 1/4  6/400 images  loss 12  fg 0.5  suppress 0.25  2.0 images/s  197 s left"),
    (79, "guide 1/4  6/400 images  loss 12  2.0 images/s  197 s left"),
    (39, "guide 1/4  6/400  loss 12  197 s left"), (34, "guide 1/4  6/400  197 s left"), (20, "guide 1/4  6/400  19")])
def test_the_line_fits_the_terminal(monkeypatch, width, shown):
    progress = Progress("guide 1/4", 400)
    progress.done = 6
    monkeypatch.setattr("time.perf_counter", lambda: progress.begin + 3)
    assert progress._line({"loss": 12.34567, "fg": 0.5, "suppress": 0.25}, width) == shown


def test_no_escape_sequence_is_ever_written(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress("draw", 2)
    progress.update(1)
    progress.close()
    end = capsys.readouterr()
    assert "\x1b" not in end.err + end.out and end.out.startswith("draw  1/1 images")  # the second was left out


def test_nothing_is_drawn_where_nobody_listens(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with open(os.devnull, "w") as null:
        monkeypatch.setattr(sys, "stdout", null)
        progress = Progress("draw", 2)
        progress.update(2)
        progress.close()
    assert capsys.readouterr().err == ""
