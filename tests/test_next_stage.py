"""Stages that take what is there: train_cam.py's results, the next command, notes that go on, what is left out."""
import argparse
import json
import shutil
from pathlib import Path

import pytest
from finished_runs import BASE, RUNS

import make_pseudo
import train_cam
import train_prompt
import train_seg
from clipwsss import options
from clipwsss.errors import run_script
from clipwsss.guidance import regions
from clipwsss.report.page import read_report


def test_without_train_prompt_train_cams_results_are_taken(copied, capsys):
    """18 photographs without CLIP: CAMs and generator of train_cam.py are taken, which is said, also in the report."""
    shutil.rmtree(f"{RUNS}/train_prompt")
    cams = f"{RUNS}/train_cam/cams"
    flags = ["--refine", "irn", "--weights", "generator", "--crop-size", "64", "--radius", "3", "--overwrite"]
    assert make_pseudo.main([*BASE["make_pseudo"], *flags]) == 0
    told = capsys.readouterr().out
    assert f"train_prompt.py has not run: {cams} is taken, which train_cam.py made\n" in told
    assert f"train_prompt.py has not run: {RUNS}/train_cam/generator.pt is taken" in told
    assert read_report(Path(f"{RUNS}/make_pseudo/report.html"))["runs"][0]["before"]["folder"] == f"{RUNS}/train_cam"
    assert train_seg.main([*BASE["train_seg"], "--weights", "auto", "--overwrite"]) == 0
    assert f"train_prompt.py has not run: {RUNS}/train_cam/generator.pt is taken" in capsys.readouterr().out


def test_what_is_missing_names_the_next_command(copied, capsys):
    for script, folder, before in ((train_seg, "make_pseudo", "make_pseudo"), (make_pseudo, "train_prompt", None),
                                   (make_pseudo, "train_cam", "train_cam"), (train_prompt, None, "train_cam")):
        if folder:
            shutil.rmtree(f"{RUNS}/{folder}")
        if before:
            name = script.__name__
            assert run_script(lambda: script.main([*BASE[name], "--out", "new"])) == 2
            told = capsys.readouterr().err
            assert told.endswith(f"; run first: python {before}.py --dataset folder --data-root data\n"), told
            assert told.count("\n") == 1 and not Path("new").exists()


def test_a_missing_classifier_of_a_quick_run_is_asked_for_by_name(copied, capsys):
    """train_cam.py --preset quick alone trains none."""
    shutil.rmtree(f"{RUNS}/train_cam")
    argv = ["--dataset", "folder", "--data-root", "data", "--preset", "quick", "--method", "pole", "--clip", "toy", "--out", "new"]
    assert run_script(lambda: train_prompt.main(argv)) == 2
    told = capsys.readouterr().err
    assert "; run first: python train_cam.py --dataset folder --generator resnet --data-root data --preset quick\n" in told


def test_the_note_on_random_weights_goes_through_all_stages(copied, capsys):
    """It is the finished runs' case: --weights none on photographs."""
    for script in (train_cam, train_prompt, make_pseudo, train_seg):
        name = script.__name__
        assert script.main([*BASE[name], "--overwrite"]) == 0
        assert f"note: {train_cam.RANDOM_NOTE}\n" in capsys.readouterr().out, name
        assert json.loads(Path(f"{RUNS}/{name}/result.json").read_text())["notes"] == [train_cam.RANDOM_NOTE]
        assert read_report(Path(f"{RUNS}/{name}/report.html"))["notes"] == [train_cam.RANDOM_NOTE]


def test_without_clip_the_way_on_is_told(copied, capsys, monkeypatch):
    def offline(*_):
        raise FileNotFoundError("https://clip: not downloaded (no network); download it elsewhere")

    monkeypatch.setattr(regions, "download", offline)
    argv = [*BASE["train_prompt"], "--clip", "ViT-B/32", "--out", "new"]
    assert run_script(lambda: train_prompt.main(argv)) == 2
    told = capsys.readouterr().err
    assert "download it elsewhere; or go on without CLIP: make_pseudo.py takes train_cam.py's CAMs" in told, told
    assert not Path("new").exists()


def test_a_start_from_a_file_looks_for_no_other_weights(copied, monkeypatch):
    def absent(*_, **__):
        raise AssertionError("--init needs no ImageNet weights")

    monkeypatch.setattr(train_cam, "build_generator", absent)
    argv = [*BASE["train_cam"], "--weights", "auto", "--init", f"{RUNS}/train_cam/generator.pt", "--epochs", "0"]
    assert train_cam.main([*argv, "--out", "new"]) == 0


def test_what_is_left_out_is_said(copied, capsys):
    """A third class without an image, three images without a mask; a batch of two at the end, and of one."""
    Path("data/classes.txt").write_text("boat\nsheep\nlake\n")
    for name in ("im1", "im3", "im4"):
        Path(f"data/masks/{name}.png").unlink()
    argv = [*BASE["train_seg"], "--masks", "truth", "--predict-split", "", "--overwrite"]
    assert train_seg.main([*argv, "--batch-size", "4"]) == 0
    told = capsys.readouterr().out
    assert "note: no image of --split train is tagged with lake (1 of 3 classes)" in told
    assert "note: 3 of 6 images have no mask and teach nothing" in told
    assert "leaves out" not in told and "2 steps of 1 x 4 images" in told
    assert train_seg.main([*argv, "--batch-size", "5"]) == 0
    told = capsys.readouterr().out
    assert "--batch-size 5: each epoch leaves out 1 of 6 images" in told and "1 steps of 1 x 5" in told


def test_published_data_leave_out_the_rest_as_their_releases(capsys, monkeypatch):
    voc = argparse.Namespace(dataset="voc12")
    assert options.drops_rest(voc, 18, 4) and "leaves out 2 of 18 images" in capsys.readouterr().out
    assert not options.drops_rest(voc, 16, 4) and not options.drops_rest(voc, 3, 4) and not capsys.readouterr().out
    own = argparse.Namespace(dataset="folder")
    assert not options.drops_rest(own, 18, 4) and options.drops_rest(own, 17, 4)
    monkeypatch.setattr(options, "world_size", lambda: 2)
    assert options.drops_rest(own, 18, 4)
