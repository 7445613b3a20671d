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


def test_on_a_terminal_it_is_redrawn_and_says_what_is_left(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress("draw", 4, "scenes")
    progress.update(1, loss=torch.tensor(2.0))
    progress.update(1)  # within a fifth of a second: not drawn
    drawn = capsys.readouterr().err
    assert drawn.count("\r") == 1 and "draw  1/4 scenes  loss 2.0000" in drawn and "scenes/s" in drawn
    assert drawn.endswith(" s left")
    progress.update(2)
    progress.close()
    end = capsys.readouterr()
    assert end.err == "\r\x1b[K" and end.out.startswith("draw  4/4 scenes") and "left" not in end.out
