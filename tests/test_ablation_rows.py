"""Rows of ablations: the papers' figures stage by stage, masks and segmenters of a row, released files as starts."""
from importlib import import_module
from pathlib import Path

import pytest
from test_ablate import DATA, TABLES, answers, calls, driver  # noqa: F401

from clipwsss import ablate
from clipwsss.errors import InputError
from clipwsss.options import parse


def by_stage(table, name, dataset="voc12"):
    """The papers' figures beside a row's CAMs, masks and segmenter."""
    row = ablate.read_rows(TABLES[table], dataset)[name]
    return ["".join(stage.paper[:1]) for stage in (row, *ablate.later_stages(row, "train_seg", dataset))]


def test_the_papers_figures_stand_in_the_rows_of_their_stages():
    voc = "from COCO 71.5 (test 71.4)"
    masks, deeplab = "78.4 (release: FMA-WSSS; paper: the standard pipeline)", "73.9 (test 73.8; SAM-based)"
    assert by_stage("pole1", "POLE") == by_stage("pole4", "D: + learnable adapters") == ["59.0", "74.2", voc]
    assert by_stage("pole1", "CoOp") == ["57.6", "73.1", ""] and by_stage("pole1", "DeFo") == ["56.6", "73.2", ""]
    clims = by_stage("pole1", "CLIMS")
    assert clims == by_stage("clip", "CLIMS") and clims[0] == "56.6 (camera-ready code), 58.6 (its release now)"
    assert clims[1] == "70.5 (camera-ready code, by a random walk), 74.1 (its release now, by IRN)"
    assert "70.4 (camera-ready code; test 70.0) and 71.4 (its release now; test 71.2)" in clims[2]
    assert by_stage("pole4", "C: + fixed adapters") == ["", "73.8", ""]
    assert by_stage("pole_fig3", "ChatGPT, 2 names") == ["", "72.2", ""]
    assert by_stage("semples5", "match, prompt-I, refine") == ["67.9", "", ""]
    assert by_stage("semples1", "SemPLeS") == ["68.7", masks, deeplab]
    assert by_stage("semples4", "SemPLeS") == ["68.7 (on WeakTr)", masks, deeplab]
    assert by_stage("semples4", "CLIMS + learned prompts beside its list") == ["", "", "71.0 (test 71.5)"]
    assert by_stage("semples4", "WeakTr")[:2] == ["65.9", "74.2 (its release: 69.4 after CRF)"]
    for row, figures in (("WeakTr", "73.2 (test 74.0"), ("SemPLeS on WeakTr", "74.2 (test 74.8")):
        marked = by_stage("semples4", row)[2]
        assert marked == f"not comparable: {figures}; very likely by WeakTr's own segmenter)"
    assert by_stage("semples1", "SemPLeS", "coco14") == ["", "", "56.1 (SAM-based)"]
    plain = ablate.read_rows({"rows": [{"name": "a", "flags": "", "paper": "1.0"}]}, "toy")["a"]
    assert [row.paper[:1] for row in (plain, *ablate.later_stages(plain, "train_seg", "toy"))] == [("1.0",), (), ()]


def test_a_baselines_row_is_carried_too():
    rows, _, folders = driver("semples4", through="train_seg")
    assert len(rows) == 3 * len(TABLES["semples4"]["rows"]) + 1  # the baseline of a ResNet is not shown
    masks = rows["WeakTr, masks"]
    segmenter = rows["WeakTr, segmenter"]
    assert segmenter.flags[-2:] == ("--weights", "none")  # a transformer's weights are no start of DeepLab's
    assert rows["SemPLeS on WeakTr, segmenter"].against == ("WeakTr, segmenter", "SemPLeS, segmenter")
    assert folders["WeakTr"].name.startswith("train_cam_")
    assert f"{folders['WeakTr']}/cams" in ablate.command_line(masks, folders, "toy", DATA, 0)
    assert ablate.later_stages(ablate.BASELINE, "train_seg", "voc12")[1].flags == ("--masks", "{masks}/masks")


def test_a_page_shows_the_papers_figures_stage_by_stage(tmp_path, calls):
    argv = ["--table", "semples4", "--data-root", "data", "--runs", str(tmp_path), "--seeds", "1", "--only", "WeakTr"]
    assert ablate.main(argv) == 0
    (page,) = (tmp_path / "toy" / "ablate").glob("*.md")
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert lines[1:] == [
        "| WeakTr | 41.0 | 41.0 |  | 65.9 |",
        "| WeakTr, masks | 42.0 | 42.0 |  | 74.2 (its release: 69.4 after CRF) |",
        "| WeakTr, segmenter | 43.0 | 43.0 |  | not comparable: 73.2 (test 74.0; very likely by WeakTr's own segmenter) |"]


def test_released_files_start_what_they_belong_to_and_the_rows_name_the_segmenter_s_start(tmp_path, calls, capsys):
    for name in ("res50_cam.pth", "checkpoint_best_mIoU.pth", "coco.pth"):
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "sam").mkdir()
    argv = ["--table", "main", "--dataset", "voc12", "--data-root", "data", "--runs", str(tmp_path), "--seeds", "1",
            "--through", "train_seg", "--only", "POLE", "SemPLeS on WeakTr"]
    with pytest.raises(InputError, match="row 'SemPLeS on WeakTr': .*--segments"):
        ablate.main(argv)
    files = ["--cam-weights", str(tmp_path / "res50_cam.pth"), "--segmenter-weights", str(tmp_path / "coco.pth"),
             "--weaktr-weights", str(tmp_path / "checkpoint_best_mIoU.pth"), "--segments", str(tmp_path / "sam")]
    assert not calls and ablate.main([*argv, *files]) == 0
    by_script = {}
    for flags in calls:
        out = Path(flags[flags.index("--out") + 1])
        by_script.setdefault(out.name.rpartition("_")[0], []).append(" ".join(flags))
    cam, weaktr = by_script["train_cam"]
    assert f"--init {tmp_path}/res50_cam.pth --epochs 0" in cam and "weaktr" not in cam
    assert f"--generator weaktr --init {tmp_path}/checkpoint_best_mIoU.pth --epochs 0" in weaktr
    irn, sam = by_script["make_pseudo"]
    assert "--segments" not in irn and f"--refine none --segments {tmp_path}/sam" in sam
    deeplab, mask2former = by_script["train_seg"]
    assert f"--weights {tmp_path}/coco.pth" in deeplab and "mask2former" not in deeplab
    assert "--network mask2former" in mask2former and "--weights" not in mask2former
    printed = capsys.readouterr().out
    assert "| POLE, segmenter from coco.pth | 46.0 | 46.0 |  | from COCO 71.5 (test 71.4) |" in printed
    assert "| SemPLeS on WeakTr, segmenter (--network mask2former) |" in printed and "83.4 (test 82.9)" in printed
    assert "The ResNet's CAMs are those of res50_cam.pth." in printed
    made = len(calls)
    assert ablate.main([*argv, *files]) == 0 and len(calls) == made  # finished rows are not run again
    with pytest.raises(InputError, match="--segmenter-weights .*none.pth: no such file"):
        ablate.main([*argv, "--segmenter-weights", str(tmp_path / "none.pth")])


def test_a_start_without_a_file_is_imagenet_s():
    row = ablate.read_rows(TABLES["pole2"], "voc12")["POLE"]
    _, segmenter = ablate.later_stages(row, "train_seg", "voc12")
    assert segmenter.name == "POLE, segmenter from imagenet" and segmenter.against == ("CLIMS, segmenter from imagenet",)


def test_rows_on_weaktr_are_scored_on_coco_as_weaktr_scores():
    """Crowds count as their class there, in CAMs, masks and segmenters; a row on the ResNet is scored as CLIMS."""
    rows = ablate.read_rows(TABLES["main"], "coco14")
    for name, expected in (("SemPLeS on WeakTr", True), ("WeakTr", True), ("POLE", False)):
        carried = [rows[name], *ablate.later_stages(rows[name], "train_seg", "coco14", segments=Path("sam"))]
        for row in carried:
            flags = [flag.replace("{", "").replace("}", "") for flag in row.flags]
            line = ["--dataset", "coco14", "--data-root", "x", *flags]
            args = parse(import_module(row.stage).get_parser(), line, row.stage)
            assert (args.crowds == "class") == expected, (row.name, row.stage)


def test_a_table_on_coco_says_that_its_figures_are_coco_s(tmp_path, calls, capsys):
    (tmp_path / "sam").mkdir()
    argv = ["--table", "main", "--data-root", "data", "--runs", str(tmp_path), "--seeds", "1", "--through", "train_seg",
            "--segments", str(tmp_path / "sam"), "--only", "SemPLeS on WeakTr", "--dataset"]
    for dataset, name, figure in (("coco14", "COCO", "56.1"), ("voc12", "VOC", "83.4 (test 82.9)")):
        assert ablate.main([*argv, dataset]) == 0
        printed = capsys.readouterr().out
        assert f"the paper's, {name} |" in printed and f" | {figure} |" in printed


def test_a_row_may_name_a_file_of_the_package():
    rows = ablate.read_rows(TABLES["clip"], "toy")
    for name in ("CLIP's own, narrow list", "both, narrow list", "POLE, narrow list"):
        flags = rows[name].flags
        words = Path(flags[flags.index("--background-words") + 1])
        assert words.read_text(encoding="utf-8").split() == ["water", "rails", "sand", "brick"]
    assert "both, narrow list" not in ablate.read_rows(TABLES["clip"], "voc12")
