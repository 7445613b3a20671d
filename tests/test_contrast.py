"""Classes that CLIP does not see are named, in the run's result and its report."""
import json

import numpy as np

import train_prompt
from clipwsss.cams.cam_files import write_cam
from clipwsss.datasets import build_dataset
from clipwsss.report.contrast import contrast_notes
from clipwsss.report.page import read_report
from clipwsss.run import Run
from clipwsss.toy.world import draw_world


def test_a_class_of_many_maps_without_contrast_is_named(tmp_path, capsys):
    draw_world(tmp_path / "data", 0, 6, 1)
    data = build_dataset("toy", tmp_path / "data", "train")
    seen = np.zeros((24, 24), np.float32)
    seen[4:12, 4:12] = 1
    empty, full = np.full((24, 24), 0.2), np.full((24, 24), 0.9)
    full[0, 0] = 0
    for number, name in enumerate(data.names):
        boat = {0: empty, 1: full}.get(number, seen)  # 2 of 6
        car = empty if number == 5 else seen          # 1 of 6, which is rare
        write_cam(tmp_path / "cams", name, np.array([0, 4]), np.stack([boat, car]))
    capsys.readouterr()
    (note,) = contrast_notes(data, tmp_path / "cams", "Try other words")
    assert note.startswith("CLIP sees nothing of 'boat' in 2 of 6 images: its maps have no contrast there. Try other words.")
    Run(tmp_path / "run", {}).result(notes=[note])
    assert capsys.readouterr().out == f"note: {note}\n"


def test_the_report_says_what_to_try(tmp_path, monkeypatch):
    draw_world(tmp_path / "toy" / "data", 0, 4, 1)
    monkeypatch.setattr("clipwsss.report.contrast.COVERED", 0.0)  # every map lacks contrast then
    flags = ["--dataset", "toy", "--workers", "0", "--device", "cpu", "--runs", str(tmp_path), "--method", "clims",
             "--maps", "clip"]
    assert train_prompt.main(flags) == 0
    out = tmp_path / "toy" / "train_prompt"
    notes = json.loads((out / "result.json").read_text())["notes"]
    assert notes and read_report(out / "report.html")["notes"] == notes and "--synonyms" in notes[0]
    assert train_prompt.main([*flags, "--background-prompt", "none", "--out", str(tmp_path / "alone")]) == 0
    notes = json.loads((tmp_path / "alone" / "result.json").read_text())["notes"]
    assert "nothing in an image of one tag: give --background-prompt list" in notes[0]
