"""The ablation driver: tables that parse, folders by settings, resumption, failures, figures by hand.

Scripts run inside this process, which spares their start; one test runs a real one.
"""
import contextlib
import importlib
import io
import json
import subprocess
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipwsss import ablate
from clipwsss.datasets import DATASETS
from clipwsss.errors import InputError, run_script
from clipwsss.report import charts
from clipwsss.toy.world import draw_world

TABLES = json.loads(ablate.ABLATION_TABLES.read_text())
MAIN = "matching", "CLIMS", "POLE words"
REAL_RUN = subprocess.run
LOCK = threading.Lock()  # standard output is one for all threads
DATA = Path("data")


def in_process(command, **_):
    """subprocess.run of a script's --dry-run, without a process."""
    with LOCK, contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = run_script(lambda: importlib.import_module(Path(command[1]).stem).main(command[2:]))
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


ANSWERS = {}  # of --dry-run, by script and flags


def remembered(command, **_):
    """The same, asked once in this file for each command line."""
    key = tuple(command[1:])
    if key not in ANSWERS:
        ANSWERS[key] = in_process(command)
    return ANSWERS[key]


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    monkeypatch.setattr(ablate.subprocess, "run", remembered)


def driver(table, dataset="toy", root=DATA, only=None, through="train_prompt"):
    """A table's rows by name with all that they start from, their settings and their folders of seed 1."""
    known = ablate.read_rows(TABLES[table], dataset)
    shown = [row for row in known.values() if only is None or row.name in only]
    shown += [later for row in shown for later in ablate.later_stages(row, through, dataset)]
    known = {"CAM": ablate.BASELINE, **known, **{row.name: row for row in shown}}
    rows = ablate.with_starts(shown, known)
    settings = ablate.settings_by_row(dataset, rows)
    return {row.name: row for row in rows}, settings, ablate.run_folders(rows, settings, Path("seed1"), root)


@pytest.fixture
def calls(monkeypatch):
    """Command lines of runs that are not made: each ends with an mIoU (or fails as `calls.fail` says)."""
    class Calls(list):
        fail = {}

    made = Calls()

    def run(command, stdout=None, **options):
        flags = command[2:]
        if "--dry-run" in flags:
            return remembered(command)
        out = Path(flags[flags.index("--out") + 1])
        made.append(flags)
        code, line = next((made.fail[word] for word in made.fail if word in flags), (0, ""))
        stdout.write(f"something before\n{line}\n".encode())
        if code == 0:
            (out / "args.json").write_text("{}")
            (out / "result.json").write_text(json.dumps({"miou": 40.0 + len(made)}))
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(ablate.subprocess, "run", run)
    return made


def test_every_rows_flags_parse_and_its_references_exist():
    """On every data set; settings and folders are one to one."""
    keys = {"name", "flags", "stage", "datasets", "against", "paper", "paper_coco14", "needs", "baseline",
            "make_pseudo", "train_seg", *DATASETS}
    for table, content in TABLES.items():
        entries = content["rows"]
        assert set(content) <= {"title", "rows", "reference", "radar", "through", "make_pseudo"}, table
        assert len({entry["name"] for entry in entries}) == len(entries), table
        for entry in entries:
            assert set(entry) <= keys, entry
            paper = entry.get("paper", "")
            is_list = 2 <= len(paper) <= 3 and all(isinstance(figure, str) for figure in paper)
            assert isinstance(paper, str) or is_list, entry
        for dataset in DATASETS:
            check_table_on_data_set(table, dataset)


def check_table_on_data_set(table, dataset):
    entries = TABLES[table]["rows"]
    rows, settings, folders = driver(table, dataset)
    known = ablate.read_rows(TABLES[table], dataset)
    assert list(known) == [entry["name"] for entry in entries if dataset in entry.get("datasets", DATASETS)]
    assert TABLES[table].get("reference", entries[0]["name"]) in known
    assert TABLES[table].get("radar", entries[0]["name"]) in known
    by_folder = {}
    for row in rows.values():
        where = f"{table}, {dataset}, {row.name}"
        assert set(row.against) <= set(known) and "seed" not in settings[row.name], where
        assert all(name in list(rows)[:list(rows).index(row.name)] for name in row.starts.values()), where
        if row.stage == "train_prompt" and settings[row.name].get("generator") == "weaktr":  # these have presets
            assert row.flags[row.flags.index("--method") + 1] in ("clims", "pole", "semples", "both"), where
        assert "baseline" not in row.starts or rows[row.starts["baseline"]].stage == "train_cam", where
        starts = [settings[name] for name in row.starts.values()]
        same = by_folder.setdefault(folders[row.name], [row.stage, settings[row.name], starts])
        assert same == [row.stage, settings[row.name], starts], where
    different = [json.dumps(key) for key in by_folder.values()]
    assert len(different) == len(set(different)), f"{table}, {dataset}"


def test_a_row_of_another_kind_of_background_prompt_states_its_suppression():
    """Presets adapt nothing to --background-prompt."""
    own = {"semples": "learned", "both": "list"}
    checked = 0
    for table in TABLES:
        for dataset in DATASETS:
            for row in ablate.read_rows(TABLES[table], dataset).values():
                given = dict(zip(row.flags, row.flags[1:]))
                kind = given.get("--background-prompt", "none")
                if kind == "none" or kind == own.get(given["--method"], "list"):
                    continue
                expected = {"list": {"toy": ("0.5", "0.2", "mean"), "coco14": ("1.25", "0.285", "sum")},
                            "learned": {"toy": ("0.5", "0", "mean"), "coco14": ("0.2", "0", "mean")}}[kind]
                voc = {"list": ("1", "0.26", "sum"), "learned": ("0.05", "0", "mean")}[kind]
                stated = [given.get(f"--{flag}") for flag in ("w-suppress", "suppress-threshold", "suppress-reduction")]
                assert tuple(stated) == expected.get(dataset, voc), f"{table}, {dataset}, {row.name}"
                checked += 1
    assert checked == 4 * 6


def test_a_script_answers_as_it_does_in_this_process(monkeypatch):
    row = ablate.read_rows(TABLES["semples4"], "toy")["CLIMS + learned prompts beside its list"]
    here = ablate.row_settings("toy", row)
    with pytest.raises(InputError, match="row 'CLIMS.*': --speed: no such flag; did you mean --seed"):
        ablate.row_settings("toy", row._replace(flags=("--speed", "9")))
    monkeypatch.setattr(ablate.subprocess, "run", REAL_RUN)
    assert ablate.row_settings("toy", row) == here and here["background_prompts"] == "{needs}/background_prompts.pt"


def test_a_bad_flag_is_one_line_before_anything_runs(tmp_path, calls):
    argv = ["--table", "pole4", "--data-root", str(tmp_path), "--runs", str(tmp_path), "--flags", "--adapter", "big"]
    with pytest.raises(InputError, match="row 'A: class name': --adapter: 'big' is not one of none, fixed"):
        ablate.main(argv)
    assert not calls


def test_same_settings_share_a_run_others_do_not():
    rows, settings, folders = driver("pole4")
    pole = folders["D: + learnable adapters"]
    assert pole == driver("pole1")[2]["POLE"] and pole.name.startswith("train_prompt_")
    assert pole != driver("pole1", root=Path("other"))[2]["POLE"]
    settings["CAM"]["lr"] = 0.5  # as if a preset had changed: what starts from the baseline is another run too
    changed = ablate.run_folders(list(rows.values()), settings, Path("seed1"), DATA)
    assert pole != changed["D: + learnable adapters"]


def test_the_grid_pairs_all_sides_at_equal_epochs_of_the_generator():
    rows, settings, _ = driver("grid")
    settings = [settings[name] for name in rows if name != "CAM"]
    epochs = {(row.get("match_epochs"), row.get("epochs"), row.get("lr"), row.get("match_lr")) for row in settings}
    sides = {(row.get("class_prompt"), row.get("template"), row.get("background_prompt")) for row in settings}
    assert len(sides) == len(settings) == 15 and len(epochs) == 1 and (epochs.pop()[0] or 0) != 0


def test_semples5_takes_its_parts_away_at_equal_epochs():
    rows, settings, _ = driver("semples5")
    assert {settings[name]["epochs"] for name in rows if name != "CAM"} == {3}  # guidance restarts after matching
    assert settings["match, prompt-T, refine"]["w_prompt_image"] == 0
    assert settings["match, prompt-I, refine"]["w_prompt_class"] == 0


def test_semples5_runs_on_weaktr_on_voc_alone():
    figures = {"CAM": "65.9 (WeakTr)", "match": "67.6", "match, refine with untrained prompts": "67.6",
               "match, prompt-T, refine": "67.7", "match, prompt-I, refine": "67.9", "match, prompt-I, prompt-T, refine": "68.7"}
    for dataset, generator in (("voc12", "weaktr"), ("toy", None), ("coco14", None), ("folder", None)):
        rows, settings, _ = driver("semples5", dataset)
        printed = {row.name: row.paper[0] for row in rows.values() if row.paper}
        assert printed == ({"CAM": ""} if dataset == "coco14" else figures)  # the paper's table is of VOC
        assert {settings[name].get("generator") for name in rows} == {generator}
    rows, _, folders = driver("semples5", "voc12")
    others = driver("semples4", "voc12")[2]
    whole = rows["match, prompt-I, prompt-T, refine"]
    assert folders[whole.name] == others["SemPLeS on WeakTr"]
    command = ablate.command_line(whole, folders, "voc12", DATA, 0)
    assert command[command.index("--init") + 1] == f"{others['WeakTr']}/generator.pt"


def test_a_baseline_that_has_a_row_is_the_one_that_has_none():
    """The toy's runs of SemPLeS' parts lie where a run that starts from the unshown baseline lies."""
    assert "CAM" not in ablate.read_rows(TABLES["combined"], "toy")
    folders = driver("combined")[2]
    assert driver("semples5")[2]["match, prompt-I, prompt-T, refine"] == folders["prompts of a run without words"]
    assert driver("main")[2]["CAM"] == folders["CAM"]


@pytest.mark.smoke
def test_rows_run_once_and_need_comes_first(tmp_path, calls, capsys):
    argv = ["--table", "semples4", "--data-root", "data", "--runs", str(tmp_path), "--seeds", "1", "--only",
            "CLIMS + learned prompts beside its list", "--through", "train_prompt"]
    assert ablate.main(argv) == 0
    assert len(calls) == 3  # the baseline, the SemPLeS row that is needed, the row itself
    baseline, semples, clims = (flags[flags.index("--out") + 1] for flags in calls)
    assert calls[2][calls[2].index("--background-prompts") + 1] == f"{semples}/background_prompts.pt"
    assert calls[1][calls[1].index("--init") + 1] == f"{baseline}/generator.pt"
    assert calls[2][calls[2].index("--cams") + 1] == f"{baseline}/cams" and "--resume" not in calls[2]
    assert ablate.main(argv) == 0 and len(calls) == 3
    Path(clims, "result.json").unlink()
    assert ablate.main(argv) == 0 and len(calls) == 4 and calls[3][-1] == "--resume"
    assert "beside its list | 44.0 |" in capsys.readouterr().out


def test_a_failed_row_is_one_line_and_the_others_go_on(tmp_path, calls, capsys):
    calls.fail = {"--adapter": (2, "error: no such device")}
    argv = ["--table", "main", "--data-root", "data", "--runs", str(tmp_path), "--seeds", "2", "--only", *MAIN]
    assert run_script(lambda: ablate.main(argv)) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 3 and lines[0].startswith("error: row 'POLE words', seed 0: no such device (see ")
    assert lines[2] == "error: 2 of 6 runs failed, see above; the table shows the others"
    assert "| POLE words | failed | - - |" in printed.out and "| CLIMS | 45.0 ± 2.8 | 43.0 47.0 |" in printed.out
    calls.fail = {}
    assert ablate.main(argv) == 0 and "| POLE words | failed" not in capsys.readouterr().out


def test_a_failed_baseline_or_need_is_not_tried_again(tmp_path, calls, capsys):
    calls.fail = {"semples": (1, "boom")}
    argv = ["--table", "semples4", "--data-root", "data", "--runs", str(tmp_path), "--seeds", "1",
            "--through", "train_prompt", "--only", "SemPLeS", "CLIMS", "CLIMS + learned prompts beside its list",
            "CLIMS with learned prompts for its list"]
    assert run_script(lambda: ablate.main(argv)) == 2
    assert len(calls) == 3 and "error: 3 of 4 runs failed" in capsys.readouterr().err
    calls.clear()
    calls.fail = {"--out": (1, "")}
    argv[argv.index("--runs") + 1] = str(tmp_path / "new")
    assert run_script(lambda: ablate.main(argv)) == 2 and len(calls) == 1
    printed = capsys.readouterr().err
    assert "row 'CAM', seed 0: something before" in printed and "4 of 4 runs failed" in printed


def test_interruption_ends_everything(tmp_path, calls):
    calls.fail = {"clims": (130, "interrupted")}
    with pytest.raises(KeyboardInterrupt):
        ablate.main(["--table", "main", "--data-root", "data", "--runs", str(tmp_path), "--seeds", "3"])
    assert len(calls) == 3  # baseline, its longer training, the row that was interrupted


def test_data_without_masks_has_no_table(tmp_path, calls, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "finished_miou", lambda out: None)
    argv = ["--table", "pole4", "--dataset", "folder", "--data-root", "data", "--runs", str(tmp_path), "--seeds", "1"]
    assert run_script(lambda: ablate.main(argv)) == 2 and len(calls) == 1
    assert "row 'CAM', seed 0: there are no masks to score the CAMs with" in capsys.readouterr().err


def test_table_by_hand():
    def row(name, against, paper=()):
        return ablate.AblationRow(name, "train_cam", (), {}, against, paper)

    rows = [row("a", ("a",), ("56.6", "70.5")), row("b", ("a",), ("", "74.2")), row("c", ("b", "a"))]
    values = {"a": np.array([50.0, 52.0]), "b": np.array([53.0, 53.0]), "c": np.array([np.nan, 60.0])}
    lines = charts.markdown(rows, values).splitlines()
    assert lines[2] == "| a | 51.0 ± 1.4 | 50.0 52.0 |  | 56.6 |"
    assert lines[3] == "| b | 53.0 ± 0.0 | 53.0 53.0 | +2.0 ± 1.4 (a) |  |"
    assert lines[4] == "| c | 60.0 | - 60.0 | +7.0 (b); +8.0 (a) |  |"


def test_worlds_of_a_chosen_co_occurrence(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(ablate, "draw_world", partial(draw_world, n_val=1))
    argv = ["--table", "pole4", "--runs", str(tmp_path), "--seeds", "2", "--first-seed", "5", "--co-occurrence", "0.9",
            "--images", "3"]
    assert ablate.main(argv) == 0
    base = tmp_path / "toy" / "ablate_n_train_3_co_occurrence_0.9"
    (page,) = base.glob("pole4_*.md")
    for seed in (5, 6):
        recipe = json.loads((base / f"seed{seed}" / "data" / "toy.json").read_text())
        assert (recipe["seed"], recipe["n_train"], recipe["co_occurrence"]) == (seed, 3, 0.9)
    roots = {flags[flags.index("--data-root") + 1] for flags in calls}
    assert roots == {str(base / f"seed{seed}" / "data") for seed in (5, 6)}
    text = page.read_text()
    assert "Seeds: 5 to 6. " in text and "Toy worlds with n_train 3, co_occurrence 0.9." in text
    for refused in (["--data-root", "x"], ["--dataset", "voc12"]):
        with pytest.raises(InputError, match="--smallest change the toy worlds drawn here: give them with"):
            ablate.main([*argv, *refused])


def test_unknown_rows_and_numbers_are_refused(tmp_path):
    with pytest.raises(InputError, match="--only 'POLEE': the rows are 'A: class name'"):
        ablate.main(["--table", "pole4", "--only", "POLEE"])
    with pytest.raises(InputError, match="--data-root: give the folder of the voc12 data set"):
        ablate.main(["--table", "pole4", "--dataset", "voc12"])
    for flag, value, low in (("--seeds", "0", 1), ("--first-seed", "-1", 0)):
        with pytest.raises(InputError, match=f"{flag}: '{value}' is not a whole number of at least {low}"):
            ablate.main(["--table", "pole4", flag, value])


def test_a_real_table_with_its_radar(tmp_path, monkeypatch):
    """Runs train_cam and POLE for an epoch, then writes the table and the radar."""
    draw_world(tmp_path / "world", 0, 24, 6)

    def run(command, **_):
        short = ["--epochs", "1", "--batch-size", "8", "--workers", "0"]
        return in_process([*command, *short])

    monkeypatch.setattr(ablate.subprocess, "run", run)
    argv = ["--table", "pole_fig4", "--data-root", str(tmp_path / "world"), "--runs", str(tmp_path), "--seeds", "1"]
    assert ablate.main(argv) == 0
    text = (tmp_path / "toy" / "ablate" / "pole_fig4.md").read_text()
    assert "| class | choices | own name % | true sub-type % | wrong word % |" in text and "| boat |" in text
    (picture,) = (tmp_path / "toy" / "ablate").glob("*.png")
    assert f"({picture.name})" in text and Image.open(picture).size[0] > 300


def test_rows_are_carried_to_masks_and_segmenter():
    row = ablate.read_rows(TABLES["pole4"], "toy")["B by minmax"]
    assert ablate.later_stages(row, "train_prompt", "toy") == []
    (masks,) = ablate.later_stages(row, "make_pseudo", "toy")
    assert (masks.name, masks.stage, masks.starts) == ("B by minmax, masks", "make_pseudo", {"cams": "B by minmax"})
    assert masks.against == ("A by minmax, masks", "B: + selected word, masks")
    (same, segmenter) = ablate.later_stages(row, "train_seg", "toy")
    assert same == masks and segmenter.stage == "train_seg"
    assert segmenter.starts == {"masks": masks.name, "generator": row.name}
    (best,) = ablate.later_stages(row, "make_pseudo", "toy", TABLES["clip"]["make_pseudo"].split())
    settings = ablate.settings_by_row("toy", [masks, best._replace(name="best")])
    assert settings["best"]["threshold"] == "auto" and settings[masks.name].get("threshold") != "auto"
    for name in ("CLIP's own", "CLIP's own, POLE's words"):  # no network was trained from which it could start
        (_, segmenter_of_clip) = ablate.later_stages(ablate.read_rows(TABLES["clip"], "toy")[name], "train_seg", "toy")
        assert segmenter_of_clip.flags[-2:] == ("--weights", "none")
    folders = driver("pole4", only=[row.name], through="train_seg")[2]
    command = ablate.command_line(segmenter, folders, "toy", DATA, 0)
    assert command[command.index("--masks") + 1] == f"{folders[masks.name]}/masks"
    assert command[command.index("--weights") + 1] == f"{folders[row.name]}/generator.pt"
