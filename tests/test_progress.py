"""The progress line: one line at the end without a terminal, redrawn with one."""
import sys

import torch

from clipwsss.progress import Progress


def test_without_a_terminal_one_line_with_rate(capsys):
    progress = Progress("train", 20)
    progress.update(20, loss=1.0)
    assert capsys.readouterr() == ("", "")
    progress.close(loss=torch.tensor(0.5))
    assert "train  20/20 images  loss 0.5000" in capsys.readouterr().out


def test_without_a_terminal_a_line_every_half_minute(capsys, monkeypatch):
    progress = Progress("train", 90, done=30)  # 30 were done before an interruption
    times = iter((10, 31, 31, 40, 62, 62))
    monkeypatch.setattr("time.perf_counter", lambda: progress.begin + next(times))
    for _ in range(4):
        progress.update(10, loss=2.0)
    assert capsys.readouterr().out == ("train  50/90 images  loss 2.0000  0.6 images/s  62 s left\n"
                                       "train  70/90 images  loss 2.0000  0.6 images/s  31 s left\n")


def test_on_a_terminal_it_is_redrawn_and_says_what_is_left(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    progress = Progress("draw", 5, "scenes")
    progress.update(1, loss=torch.tensor(2.0))
    progress.update(1)  # within a fifth of a second: not drawn
    drawn = capsys.readouterr().out
    assert drawn.count("\r") == 1 and "draw  1/5 scenes  loss 2.0000" in drawn and "scenes/s" in drawn
    assert drawn.rstrip().endswith(" s left") and len(drawn) == 80
    progress.update(2)
    progress.close()
    end = capsys.readouterr()
    blank = "\r" + " " * 79 + "\r"
    assert end.out.startswith(f"{blank}draw  4/4 scenes") and "left" not in end.out, "the fifth was left out"
    assert "\x1b" not in drawn + end.out and end.err == "", "no escape sequence is written"


def test_the_line_fits_the_terminal(monkeypatch):
    progress = Progress("guide 1/4", 400)
    progress.done = 6
    monkeypatch.setattr("time.perf_counter", lambda: progress.begin + 3)
    for width, shown in (
            (200, "guide 1/4  6/400 images  loss 12.3457  fg 0.5000  suppress 0.2500  2.0 images/s  197 s left"),
            (82, "guide 1/4  6/400 images  loss 12  fg 0.5  suppress 0.25  2.0 images/s  197 s left"),
            (79, "guide 1/4  6/400 images  loss 12  2.0 images/s  197 s left"),
            (39, "guide 1/4  6/400  loss 12  197 s left"),
            (34, "guide 1/4  6/400  197 s left"),
            (20, "guide 1/4  6/400  19")):
        assert progress._line({"loss": 12.34567, "fg": 0.5, "suppress": 0.25}, width) == shown
