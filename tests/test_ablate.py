"""The ablation driver: tables that parse, folders by settings, resumption, failures, figures by hand."""
import json
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipwsss import ablate
from clipwsss.datasets import DATASETS
from clipwsss.errors import InputError, run_script
from clipwsss.toy.world import draw_world

TABLES = json.loads(ablate.TABLES.read_text())
MAIN = "matching", "CLIMS", "POLE words"


def driver(table, *flags, dataset="toy", root=Path("data")):
    argv = ["--table", table, "--dataset", dataset, "--data-root", str(root), *flags]
    return ablate.Ablation(TABLES[table], ablate.get_parser().parse_args(argv))


@pytest.fixture
def world(tmp_path):
    draw_world(tmp_path / "world", 0, 24, 6)
    return tmp_path / "world"


@pytest.fixture
def calls(monkeypatch):
    """Command lines of runs that are not made: each logs an mIoU (or fails as `calls.fail` says)."""
    class Calls(list):
        fail = {}

    made = Calls()

    def run(command, stdout, stderr, env):
        flags = command[2:]
        out, made[len(made):] = Path(flags[flags.index("--out") + 1]), [flags]
        code, line = next((made.fail[word] for word in made.fail if word in flags), (0, ""))
        stdout.write(f"something before\n{line}\n")
        if code == 0:
            (out / "args.json").write_text("{}")
            (out / "log.jsonl").write_text(json.dumps({"label": "cams", "miou": 40.0 + len(made)}) + "\n")
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(ablate.subprocess, "run", run)
    return made


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("table", TABLES)
def test_every_rows_flags_parse_and_its_references_exist(table, dataset):
    found = driver(table, dataset=dataset)
    names = [row["name"] for row in found.rows]
    assert len(set(names)) == len(names)
    for row in found.rows:
        assert found.settings(row) is not None
        known = {"name", "flags", "stage", "datasets", "against", "paper", "needs", *DATASETS}
        assert set(row) <= known and {*row.get("against", ()), row.get("needs", names[0])} <= set(names)
    assert TABLES[table].get("reference", names[0]) in names and TABLES[table].get("radar", names[0]) in names


def test_a_bad_flag_is_one_line_before_anything_runs(tmp_path, calls):
    argv = ["--table", "pole4", "--data-root", str(tmp_path), "--runs", str(tmp_path), "--flags", "--adapter", "big"]
    with pytest.raises(InputError, match="row 'A: class name': argument --adapter: invalid choice: 'big'"):
        ablate.main(argv)
    assert not calls


@pytest.mark.parametrize("dataset", ["toy", "voc12"])
def test_folders_are_one_to_one_with_settings(dataset):
    by_folder = {}
    for table in TABLES:
        found = driver(table, dataset=dataset)
        for row in found.rows:
            needed = found.table[row["needs"]] if "needs" in row else {}
            key = json.dumps([found.settings(row), needed and found.settings(needed), row.get("stage")])
            by_folder.setdefault(found.out(row, 0), set()).add(key)
    keys = [key for group in by_folder.values() for key in group]
    assert all(len(group) == 1 for group in by_folder.values()) and len(keys) == len(set(keys)) > 40


def test_same_settings_share_a_run_other_presets_do_not(monkeypatch, tmp_path):
    pole = driver("pole4").out(driver("pole4").table["D: + learnable adapters"], 1)
    assert pole == driver("pole1").out(driver("pole1").table["POLE"], 1)
    assert pole != driver("pole1").out(driver("pole1").table["POLE"], 0)
    assert pole != driver("pole1", root="other").out(driver("pole1").table["POLE"], 1)
    from clipwsss import options
    presets = json.loads(options.PRESETS.read_text())
    presets["train_cam"]["toy"]["lr"] = 0.5  # the baseline's: what starts from it is another run too
    (tmp_path / "presets.json").write_text(json.dumps(presets))
    monkeypatch.setattr(options, "PRESETS", tmp_path / "presets.json")
    assert pole != driver("pole4").out(driver("pole4").table["D: + learnable adapters"], 1)


def test_the_grid_pairs_all_sides_at_equal_epochs_of_the_generator():
    grid = driver("grid")
    found = [grid.settings(row) for row in grid.rows]
    epochs = {(row.get("match_epochs"), row.get("epochs"), row.get("lr"), row.get("match_lr")) for row in found}
    sides = {(row.get("class_prompt"), row.get("template"), row.get("background_prompt")) for row in found}
    assert len(sides) == len(found) == 15 and len(epochs) == 1 and (epochs.pop()[0] or "0") != "0"


def test_semples5_takes_its_parts_away_at_equal_epochs():
    table = driver("semples5")
    found = {row["name"]: table.settings(row) for row in table.rows if row["name"] != "CAM"}
    assert {int(row.get("match_epochs", 0)) + int(row["epochs"]) for row in found.values()} == {6}
    assert found["match, prompt-T, refine"]["w_prompt_image"] == "0.0"
    assert found["match, prompt-I, refine"]["w_prompt_class"] == "0.0"


def test_rows_run_once_and_need_comes_first(tmp_path, calls, capsys):
    argv = ["--table", "semples4", "--data-root", "data", "--runs", str(tmp_path), "--seeds", "1", "--only",
            "CLIMS + learned prompts beside its list"]
    assert ablate.main(argv) == 0
    assert len(calls) == 3  # the baseline, the SemPLeS row that is needed, the row itself
    baseline, semples, clims = (flags[flags.index("--out") + 1] for flags in calls)
    assert calls[2][calls[2].index("--background-prompts") + 1] == f"{semples}/background_prompts.pt"
    assert calls[1][calls[1].index("--init") + 1] == f"{baseline}/generator.pt"
    assert calls[2][calls[2].index("--cams") + 1] == f"{baseline}/cams" and "--resume" not in calls[2]
    assert ablate.main(argv) == 0 and len(calls) == 3
    Path(clims, "log.jsonl").unlink()
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
    argv = ["--table", "semples4", "--data-root", "data", "--runs", str(tmp_path), "--seeds", "1"]
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
    rows = [{"name": "a", "paper": "56.6"}, {"name": "b"}, {"name": "c", "against": ["b", "a"]}]
    values = {"a": np.array([50.0, 52.0]), "b": np.array([53.0, 53.0]), "c": np.array([np.nan, 60.0])}
    lines = ablate.markdown(rows, "a", values, "caption").splitlines()
    assert lines[0] == "caption"
    assert lines[4] == "| a | 51.0 ± 1.4 | 50.0 52.0 |  | 56.6 |"
    assert lines[5] == "| b | 53.0 ± 0.0 | 53.0 53.0 | +2.0 ± 1.4 (a) |  |"
    assert lines[6] == "| c | 60.0 | - 60.0 | +7.0 (b); +8.0 (a) |  |"


def test_worlds_of_a_chosen_co_occurrence(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(ablate, "draw_world", partial(draw_world, n_train=3, n_val=1))
    argv = ["--table", "pole4", "--runs", str(tmp_path), "--seeds", "2", "--co-occurrence", "0.9"]
    assert ablate.main(argv) == 0
    base = tmp_path / "toy" / "ablate_0.9"
    for seed in range(2):
        recipe = json.loads((base / f"seed{seed}" / "data" / "toy.json").read_text())
        assert (recipe["seed"], recipe["co_occurrence"]) == (seed, 0.9)
    roots = {flags[flags.index("--data-root") + 1] for flags in calls}
    assert roots == {str(base / f"seed{seed}" / "data") for seed in range(2)}
    assert "Worlds of co-occurrence 0.9." in (base / "pole4.md").read_text()
    for refused in (["--data-root", "x"], ["--dataset", "voc12"]):
        with pytest.raises(InputError, match="--co-occurrence is of worlds drawn here"):
            ablate.main([*argv, *refused])


def test_unknown_rows_and_numbers_are_refused(tmp_path):
    with pytest.raises(InputError, match="--only 'POLEE': the rows are 'A: class name'"):
        driver("pole4", "--only", "POLEE")
    with pytest.raises(InputError, match="--data-root: say where the voc12 data is"):
        ablate.main(["--table", "pole4", "--dataset", "voc12"])
    with pytest.raises(InputError, match="at least 1 of each"):
        ablate.main(["--table", "pole4", "--seeds", "0"])


def test_a_real_table_with_its_pictures(world, tmp_path, monkeypatch):
    """Runs the scripts in this process: train_cam and POLE for an epoch, then the table, the bars and the radar."""
    def run(command, stdout, stderr, env):
        script = next(module for module in ablate.STAGES.values() if module.__file__ == command[1])
        short = ["--epochs", "1", "--batch-size", "8", "--workers", "0"]
        return subprocess.CompletedProcess(command, script.main([*command[2:], *short]))

    monkeypatch.setattr(ablate.subprocess, "run", run)
    argv = ["--table", "pole_fig4", "--data-root", str(world), "--runs", str(tmp_path), "--seeds", "1"]
    assert ablate.main(argv) == 0
    text = (tmp_path / "toy" / "ablate" / "pole_fig4.md").read_text()
    assert "| class | choices | own name % | true sub-type % | wrong word % |" in text and "| boat |" in text
    pictures = sorted((tmp_path / "toy" / "ablate").glob("*.png"))
    assert len(pictures) == 2 and all(f"({path.name})" in text and Image.open(path).size[0] > 300 for path in pictures)
