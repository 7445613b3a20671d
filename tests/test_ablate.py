"""The ablation driver: tables that parse, folders by settings, resumption, failures, figures by hand.

Scripts run inside this process, which spares their start; one test runs a real one.
"""
import contextlib
import importlib
import io
import json
import subprocess
import threading
import zlib
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

TABLES = json.loads(ablate.TABLES.read_text())
MAIN = "matching", "CLIMS", "POLE words"
REAL_RUN = subprocess.run
LOCK = threading.Lock()  # standard output is one for all threads


def in_process(command, **_):
    """subprocess.run of a script's --dry-run, without a process."""
    with LOCK, contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = run_script(lambda: importlib.import_module(Path(command[1]).stem).main(command[2:]))
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    monkeypatch.setattr(ablate.subprocess, "run", in_process)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which main would set for its runs


def driver(table, dataset="toy", root=Path("data")):
    """A table's rows by name, and their Ablation."""
    rows = ablate.rows_of(TABLES[table], dataset)
    return rows, ablate.Ablation(Path("runs"), dataset, ablate.ask_all(dataset, rows.values()), root)


@pytest.fixture
def world(tmp_path):
    draw_world(tmp_path / "world", 0, 24, 6)
    return tmp_path / "world"


@pytest.fixture
def calls(monkeypatch):
    """Command lines of runs that are not made: each ends with an mIoU (or fails as `calls.fail` says)."""
    class Calls(list):
        fail = {}

    made = Calls()

    def run(command, stdout=None, **options):
        flags = command[2:]
        if "--dry-run" in flags:
            return in_process(command)
        out, made[len(made):] = Path(flags[flags.index("--out") + 1]), [flags]
        code, line = next((made.fail[word] for word in made.fail if word in flags), (0, ""))
        stdout.write(f"something before\n{line}\n")
        if code == 0:
            (out / "args.json").write_text("{}")
            (out / "result.json").write_text(json.dumps({"miou": 40.0 + len(made)}))
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(ablate.subprocess, "run", run)
    return made


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("table", TABLES)
def test_every_rows_flags_parse_and_its_references_exist(table, dataset):
    rows, ablation = driver(table, dataset)
    shown = [entry for entry in TABLES[table]["rows"] if dataset in entry.get("datasets", DATASETS)]
    assert [entry["name"] for entry in shown] == list(rows)  # no name twice
    for entry in shown:
        row = rows[entry["name"]]
        assert "seed" not in ablation.settings[row]
        assert [start.name for start in row.starts[1:]] == [entry[key] for key in ("needs",) if key in entry]
        paper = entry.get("paper", "")
        assert isinstance(paper, str) or 2 <= len(paper) <= 3 and all(isinstance(figure, str) for figure in paper)
        assert rows.get(entry.get("baseline"), ablate.BASELINE).stage == "train_cam"
        known = {"name", "flags", "stage", "datasets", "against", "paper", "needs", "baseline", *DATASETS}
        assert set(entry) <= known and {*entry.get("against", ()), entry.get("needs", row.name),
                                             entry.get("baseline", row.name)} <= set(rows)
    names = list(rows)
    assert TABLES[table].get("reference", names[0]) in names and TABLES[table].get("radar", names[0]) in names
    assert set(TABLES[table]) <= {"title", "rows", "reference", "radar", "through", "make_pseudo", "papers"}
    assert all(isinstance(text, str) for name, figure in TABLES[table].get("papers", ()) for text in (name, figure))


def test_a_script_answers_as_it_does_in_this_process(monkeypatch):
    row = driver("semples4")[0]["CLIMS + learned prompts beside its list"]
    here = ablate.ask("toy", row)
    monkeypatch.setattr(ablate.subprocess, "run", REAL_RUN)
    assert ablate.ask("toy", row) == here and here["background_prompts"] == "{needs}/background_prompts.pt"
    with pytest.raises(InputError, match="row 'CLIMS.*': --speed: no such flag; did you mean --seed"):
        ablate.ask("toy", row._replace(flags=("--speed", "9")))


def test_a_bad_flag_is_one_line_before_anything_runs(tmp_path, calls):
    argv = ["--table", "pole4", "--data-root", str(tmp_path), "--runs", str(tmp_path), "--flags", "--adapter", "big"]
    with pytest.raises(InputError, match="row 'A: class name': --adapter: 'big' is none of none, fixed"):
        ablate.main(argv)
    assert not calls


@pytest.mark.parametrize("dataset", ["toy", "voc12"])
def test_folders_are_one_to_one_with_settings(dataset):
    by_folder = {}
    for table in TABLES:
        rows, ablation = driver(table, dataset)
        for row in rows.values():
            settings = [ablation.settings[row], *(ablation.settings[start] for start in row.starts[1:]), row.stage]
            by_folder.setdefault(ablation.out(row, 0), set()).add(json.dumps(settings))
    keys = [key for group in by_folder.values() for key in group]
    assert all(len(group) == 1 for group in by_folder.values()) and len(keys) == len(set(keys)) > 40


def test_same_settings_share_a_run_other_presets_do_not(monkeypatch, tmp_path):
    def folder(table, name, seed=1, root=Path("data")):
        rows, ablation = driver(table, root=root)
        return ablation.out(rows[name], seed)

    pole = folder("pole4", "D: + learnable adapters")
    assert pole == folder("pole1", "POLE")
    assert pole != folder("pole1", "POLE", seed=0)
    assert pole != folder("pole1", "POLE", root=Path("other"))
    from clipwsss import options
    presets = json.loads(options.PRESETS.read_text())
    changed = {"when": {"dataset": "toy"}, "from": "this test", "set": {"lr": 0.5}}
    presets["train_cam"].append(changed)  # the baseline's: what starts from it is another run too
    (tmp_path / "presets.json").write_text(json.dumps(presets))
    monkeypatch.setattr(options, "PRESETS", tmp_path / "presets.json")
    assert pole != folder("pole4", "D: + learnable adapters")


def test_the_grid_pairs_all_sides_at_equal_epochs_of_the_generator():
    rows, ablation = driver("grid")
    settings = [ablation.settings[row] for row in rows.values()]
    epochs = {(row.get("match_epochs"), row.get("epochs"), row.get("lr"), row.get("match_lr")) for row in settings}
    sides = {(row.get("class_prompt"), row.get("template"), row.get("background_prompt")) for row in settings}
    assert len(sides) == len(settings) == 15 and len(epochs) == 1 and (epochs.pop()[0] or 0) != 0


def test_semples5_takes_its_parts_away_at_equal_epochs():
    rows, ablation = driver("semples5")
    settings = {name: ablation.settings[row] for name, row in rows.items() if name != "CAM"}
    assert {row["epochs"] for row in settings.values()} == {3}  # guidance starts again after matching
    assert settings["match, prompt-T, refine"]["w_prompt_image"] == 0
    assert settings["match, prompt-I, refine"]["w_prompt_class"] == 0


def test_semples5_runs_on_weaktr_on_voc_alone():
    figures = {"CAM": "65.9 (WeakTr; its release: 69.4)", "match": "67.6", "match, refine with untrained prompts": "67.6",
               "match, prompt-T, refine": "67.7", "match, prompt-I, refine": "67.9", "match, prompt-I, prompt-T, refine": "68.7"}
    for dataset, generator in (("voc12", "weaktr"), ("toy", None), ("coco14", None), ("folder", None)):
        rows, ablation = driver("semples5", dataset)
        assert {row.name: row.paper[0] for row in rows.values() if row.paper} == figures
        for row in (*rows.values(), *(row.starts[0] for row in rows.values() if row.starts)):
            assert ablation.settings[row].get("generator") == generator
    rows, ablation = driver("semples5", "voc12")
    others, other = driver("semples4", "voc12")
    whole, same = rows["match, prompt-I, prompt-T, refine"], others["SemPLeS on WeakTr"]
    assert ablation.out(whole, 0) == other.out(same, 0)
    command = ablation.command(whole, 0)
    assert command[command.index("--init") + 1] == f"{other.out(others['WeakTr'], 0)}/generator.pt"


def test_a_baseline_that_has_a_row_is_the_one_that_has_none():
    """The toy's runs of SemPLeS' parts lie where a run that starts from the unnamed baseline lies."""
    rows, ablation = driver("semples5")
    unnamed, other = driver("main")
    whole = "match, prompt-I, prompt-T, refine"
    assert rows[whole].starts == (rows["CAM"],) != unnamed["SemPLeS"].starts == (ablate.BASELINE,)
    assert ablation.out(rows[whole], 0) == other.out(unnamed["SemPLeS"], 0)


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
    assert lines[2] == "error: 2 of 6 runs failed, see above; the others are in the table"
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
    calls.fail, calls[:] = {"--out": (1, "")}, []
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
    monkeypatch.setattr(ablate, "finished", lambda out: None)
    argv = ["--table", "pole4", "--dataset", "folder", "--data-root", "data", "--runs", str(tmp_path), "--seeds", "1"]
    assert run_script(lambda: ablate.main(argv)) == 2 and len(calls) == 1
    assert "row 'CAM', seed 0: no masks to score CAMs with" in capsys.readouterr().err


def test_table_by_hand():
    rows = [ablate.AblationRow("a", "train_cam", against=("a",), paper=("56.6", "70.5")),
            ablate.AblationRow("b", "train_cam", against=("a",), paper=("", "74.2")),
            ablate.AblationRow("c", "train_cam", against=("b", "a"))]
    values = {"a": np.array([50.0, 52.0]), "b": np.array([53.0, 53.0]), "c": np.array([np.nan, 60.0])}
    lines = charts.markdown(rows, values).splitlines()
    assert lines[2] == "| a | 51.0 ± 1.4 | 50.0 52.0 |  | 56.6 |"
    assert lines[3] == "| b | 53.0 ± 0.0 | 53.0 53.0 | +2.0 ± 1.4 (a) |  |"
    assert lines[4] == "| c | 60.0 | - 60.0 | +7.0 (b); +8.0 (a) |  |"
    assert charts.markdown(rows, values, [["PSA", "48.0"]]).splitlines() == [*lines, "| PSA | | | | 48.0 |"]


def test_worlds_of_a_chosen_co_occurrence(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(ablate, "draw_world", partial(draw_world, n_val=1))
    argv = ["--table", "pole4", "--runs", str(tmp_path), "--seeds", "2", "--first-seed", "5", "--co-occurrence", "0.9",
            "--images", "3"]
    assert ablate.main(argv) == 0
    base, page = tmp_path / "toy" / "ablate_n_train_3_co_occurrence_0.9", "pole4_" + f"{zlib.crc32(str([5]).encode()):08x}.md"
    for seed in (5, 6):
        recipe = json.loads((base / f"seed{seed}" / "data" / "toy.json").read_text())
        assert (recipe["seed"], recipe["n_train"], recipe["co_occurrence"]) == (seed, 3, 0.9)
    roots = {flags[flags.index("--data-root") + 1] for flags in calls}
    assert roots == {str(base / f"seed{seed}" / "data") for seed in (5, 6)}
    assert "over seeds 5 to 6. Worlds of n_train 3, co_occurrence 0.9." in (base / page).read_text()
    for refused in (["--data-root", "x"], ["--dataset", "voc12"]):
        with pytest.raises(InputError, match="--smallest: of worlds drawn here"):
            ablate.main([*argv, *refused])


def test_unknown_rows_and_numbers_are_refused(tmp_path):
    with pytest.raises(InputError, match="--only 'POLEE': the rows are 'A: class name'"):
        ablate.main(["--table", "pole4", "--only", "POLEE"])
    with pytest.raises(InputError, match="--data-root: say where the voc12 data is"):
        ablate.main(["--table", "pole4", "--dataset", "voc12"])
    for flag, value, low in (("--seeds", "0", 1), ("--first-seed", "-1", 0)):
        with pytest.raises(InputError, match=f"{flag}: '{value}' is not a whole number from {low} up"):
            ablate.main(["--table", "pole4", flag, value])


def test_a_real_table_with_its_pictures(world, tmp_path, monkeypatch):
    """Runs train_cam and POLE for an epoch, then the table, the bars and the radar."""
    def run(command, **_):
        short = ["--epochs", "1", "--batch-size", "8", "--workers", "0"]
        return in_process([*command, *short])

    monkeypatch.setattr(ablate.subprocess, "run", run)
    argv = ["--table", "pole_fig4", "--data-root", str(world), "--runs", str(tmp_path), "--seeds", "1"]
    assert ablate.main(argv) == 0
    text = (tmp_path / "toy" / "ablate" / "pole_fig4.md").read_text()
    assert "| class | choices | own name % | true sub-type % | wrong word % |" in text and "| boat |" in text
    pictures = sorted((tmp_path / "toy" / "ablate").glob("*.png"))
    assert len(pictures) == 2 and all(f"({path.name})" in text and Image.open(path).size[0] > 300 for path in pictures)


def test_rows_are_carried_to_masks_and_segmenter():
    rows = list(ablate.rows_of(TABLES["pole4"], "toy").values())
    assert ablate.carried(rows, "train_prompt", "toy") == rows
    masks = ablate.carried(rows, "make_pseudo", "toy")
    assert [row.name for row in masks[len(rows):]] == [f"{row.name}, masks" for row in rows]
    assert masks[-1].starts == (rows[-1],)
    assert masks[-1].against == ("A by minmax, masks", "B: + selected word, masks")
    whole = ablate.carried(rows[:1], "train_seg", "toy")
    assert [row.stage for row in whole] == ["train_prompt", "make_pseudo", "train_seg"]
    assert whole[2].starts == (whole[1], rows[0]) and "{needs}/generator.pt" in whole[2].flags
    best = ablate.carried(rows[:1], "make_pseudo", "toy", TABLES["both"]["make_pseudo"])[-1]
    settings = ablate.ask_all("toy", [*whole, best])
    assert settings[best]["threshold"] == "auto" and settings[whole[1]].get("threshold") != "auto"
    ablation = ablate.Ablation(Path("base"), "toy", settings, Path("data"))
    command = ablation.command(whole[2], 0)
    assert command[command.index("--masks") + 1] == f"{ablation.out(whole[1], 0)}/masks"
    assert command[command.index("--weights") + 1] == f"{ablation.out(rows[0], 0)}/generator.pt"


def by_stage(table, name, dataset="voc12"):
    """The papers' figures beside a row's CAMs, masks and segmenter."""
    rows = ablate.carried(list(ablate.rows_of(TABLES[table], dataset).values()), "train_seg", dataset)
    return ["".join(row.paper[:1]) for row in rows if row.name in (name, f"{name}, masks", f"{name}, segmenter")]


def test_the_papers_figures_stand_in_the_rows_of_their_stages():
    voc = "71.5 (test 71.4)"
    fma = "73.9 (test 73.8; masks by FMA-WSSS)"
    assert by_stage("pole1", "POLE") == by_stage("pole4", "D: + learnable adapters") == ["59.0", "74.2", voc]
    assert by_stage("pole1", "CoOp") == ["57.6", "73.1", ""] and by_stage("pole1", "DeFo") == ["56.6", "73.2", ""]
    assert by_stage("pole1", "CLIMS") == by_stage("both", "CLIMS") == ["56.6", "70.5", "70.4 (test 70.0)"]
    assert by_stage("pole4", "C: + fixed adapters") == ["", "73.8", ""]
    assert by_stage("pole_fig3", "ChatGPT, 2 names") == ["", "72.2", ""]
    assert by_stage("semples5", "match, prompt-I, refine") == ["67.9", "", ""]
    assert by_stage("semples1", "SemPLeS") == ["68.7", "78.4 (by FMA-WSSS)", fma]
    assert by_stage("semples4", "SemPLeS") == ["68.7 (on WeakTr)", "78.4 (by FMA-WSSS)", fma]
    assert by_stage("semples4", "CLIMS + learned prompts beside its list") == ["", "", "71.0 (test 71.5)"]
    assert by_stage("semples4", "WeakTr") == ["65.9 (its release: 69.4)", "74.2", "73.2 (test 74.0)"]
    assert by_stage("semples4", "SemPLeS on WeakTr")[2] == "74.2 (test 74.8)"
    plain = ablate.rows_of({"rows": [{"name": "a", "flags": [], "paper": "1.0"}]}, "toy")["a"]
    assert [row.paper[:1] for row in ablate.carried([plain], "train_seg", "toy")] == [("1.0",), (), ()]


def test_a_baselines_row_is_carried_too():
    rows = ablate.rows_of(TABLES["semples4"], "toy")
    whole = {row.name: row for row in ablate.carried(list(rows.values()), "train_seg", "toy")}
    assert len(whole) == 3 * len(rows)
    masks, segmenter = whole["WeakTr, masks"], whole["WeakTr, segmenter"]
    assert masks.starts == (rows["WeakTr"],) and segmenter.starts == (masks, rows["WeakTr"])
    assert segmenter.flags == ("--weights", "none")  # a transformer's weights are no start of DeepLab's
    assert whole["SemPLeS on WeakTr, segmenter"].against == ("WeakTr, segmenter", "SemPLeS, segmenter")
    ablation = ablate.Ablation(Path("base"), "toy", ablate.ask_all("toy", [segmenter]), Path("data"))
    before = ablation.out(rows["WeakTr"], 0)
    assert before.name.startswith("train_cam_") and f"{before}/cams" in ablation.command(masks, 0)
    (cam,) = ablate.carried([ablate.BASELINE], "train_seg", "voc12")[2:]
    assert (cam.name, cam.flags) == ("CAM, segmenter", ())


def test_what_the_papers_alone_have_stands_below_the_rows(tmp_path, calls):
    argv = ["--table", "semples4", "--data-root", "data", "--runs", str(tmp_path), "--seeds", "1", "--only", "WeakTr"]
    assert ablate.main(argv) == 0
    (page,) = (tmp_path / "toy" / "ablate").glob("*.md")
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert lines[1:] == ["| WeakTr | 41.0 | 41.0 |  | 65.9 (its release: 69.4) |",
                         "| WeakTr, masks | 42.0 | 42.0 |  | 74.2 |",
                         "| WeakTr, segmenter | 43.0 | 43.0 |  | 73.2 (test 74.0) |",
                         "| FMA-WSSS, Mask2Former | | | | val 82.6 (test 81.6) |",
                         "| SemPLeS by FMA-WSSS, Mask2Former | | | | val 83.4 (test 82.9) |"]
    others = dict(TABLES["pole2"]["papers"])
    assert others["ESOL, R50"] == "CAM 53.6, masks 68.7" and others["ESOL, V2-R101 on R50"] == "val 69.9 (test 69.3)"
    assert dict(TABLES["semples1"]["papers"])["SemPLeS, COCO"] == "val 56.1"
