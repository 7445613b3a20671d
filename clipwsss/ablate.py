"""Run a table of ablations over several seeds and write the results as a Markdown page.

    python -m clipwsss.ablate --table pole1 --dataset toy --seeds 3

The tables are in assets/tables.json; ablation_rows.py says what they may hold.

A row that has a finished run is not run again, and an interrupted run is resumed. Several processes may run
different seeds of a table at the same time (--first-seed, --seeds 1); a run over all these seeds afterwards
writes the page.
"""
import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .ablation_rows import (BASELINE, AblationRow, later_stages, read_rows, with_released_cams,
                            with_starts)
from .datasets import DATASETS
from .errors import InputError, run_script
from .files import read_json, write_text
from .run import FREE_ON_RESUME, digest
from .flags import Parser, real, whole
from .guidance.choices import read_choices, report, toy_truth
from .guidance.words import ASSETS
from .report.charts import markdown
from .toy.scenes import CO_OCCURRENCE, LARGEST_OBJECT, SMALLEST_OBJECT, TINIEST
from .toy.world import N_TRAIN, RECIPE, draw_world

SCRIPTS = Path(__file__).resolve().parents[1]
ABLATION_TABLES = ASSETS / "tables.json"
THROUGH = ("train_prompt", "make_pseudo", "train_seg")
# These settings say where and on what a run is made. `method` only chooses the defaults of other settings.
NOT_OF_THE_ROW = FREE_ON_RESUME | {"dataset", "data_root", "runs", "out", "seed", "method", "clip_cache"}
SCRIPTS_AT_ONCE = 4  # scripts that answer --dry-run at the same time; each of them loads PyTorch
UTF8_OUTPUT = {**os.environ, "PYTHONIOENCODING": "utf-8"}  # the environment of scripts whose output is read
INTERRUPTED = (130, -2)  # exit status of a script that Ctrl-C ended


def get_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    tables = read_json(ABLATION_TABLES)
    titles = "\n".join(f"  {name:<11} {table['title']}" for name, table in tables.items())
    parser = Parser(prog="python -m clipwsss.ablate", description=__doc__.splitlines()[0],
                    epilog=f"tables:\n{titles}")
    add = parser.add_argument
    add("--table", choices=sorted(tables), required=True, metavar="TABLE",
        help="table to run, one of those listed below")
    add("--dataset", choices=DATASETS, default="toy", help="data set on which the rows are run")
    add("--data-root", type=Path,
        help="folder of the data set; toy: without it, a world is drawn for each seed")
    add("--runs", type=Path, default=Path("runs"), help="all runs are written below RUNS/DATASET/ablate")
    add("--images", type=whole(1), default=N_TRAIN,
        help="toy: number of training images in each drawn world")
    add("--co-occurrence", type=real(0, 1), default=CO_OCCURRENCE,
        help="toy: probability that a class is drawn on its own background")
    add("--smallest", type=real(TINIEST, LARGEST_OBJECT), default=SMALLEST_OBJECT,
        help="toy: half-size of the smallest object as a fraction of the image's side")
    add("--seeds", type=whole(1), default=3, help="number of seeds; each row is run once with each seed")
    add("--first-seed", type=whole(0), default=0, help="the first seed; the others follow it")
    add("--through", choices=THROUGH,
        help="last script that is run for each row (default: that of the table)")
    add("--cam-weights", type=Path, metavar="FILE",
        help="the ResNet's baseline is this released file (CLIMS' res50_cam.pth) and is not trained")
    add("--weaktr-weights", type=Path, metavar="FILE",
        help="WeakTr's baseline is this released file (checkpoint_best_mIoU.pth) and is not trained")
    add("--segments", type=Path, metavar="DIR",
        help="segments of the images, for rows whose masks are painted from them "
        "(python -m clipwsss.refine.segments)")
    add("--segmenter-weights", type=Path, metavar="FILE",
        help="file that DeepLab starts from, such as deeplabv1_resnet101-coco.pth, which the rows name "
        "(default: ImageNet's weights; toy: those of the row's generator)")
    add("--only", nargs="+", metavar="ROW",
        help="rows of the table to show; the rows that they start from are run too (default: all rows)")
    add("--flags", nargs=argparse.REMAINDER,
        help="flags of train_prompt.py that are added to each of its rows; --flags comes last on the command "
        "line")
    return parser


def row_settings(dataset: str, row: AblationRow) -> dict[str, object]:
    """The row's settings that differ from the script's defaults, by --dry-run; InputError on a wrong flag."""
    command = [sys.executable, f"{SCRIPTS / row.stage}.py", "--dataset", dataset, *row.flags, "--dry-run"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace",
                          env=UTF8_OUTPUT)
    if done.returncode:
        raise InputError(f"row {row.name!r}: {last_line(done.stderr, done.returncode)}")
    answer = json.loads(done.stdout)
    return {name: value for name, value in sorted(answer["settings"].items())
            if name not in NOT_OF_THE_ROW and value != answer["defaults"][name]}


def settings_by_row(dataset: str, rows: Sequence[AblationRow]) -> dict[str, dict[str, object]]:
    """The settings of every row by its name. Rows with the same script and flags are asked for once."""
    different = {(row.stage, row.flags): row for row in rows}
    workers = min(SCRIPTS_AT_ONCE, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:  # because a script takes seconds to start
        answers = pool.map(lambda row: row_settings(dataset, row), different.values())
        settings = dict(zip(different, answers))
    return {row.name: settings[row.stage, row.flags] for row in rows}


def last_line(output: str, code: int) -> str:
    """The last line that a script printed, without "error:"; its exit status where it printed nothing."""
    line = output.strip().rpartition("\n")[2]
    return re.sub(r"^(\S+: )?error: ", "", line) or f"exit status {code}"


def run_folders(rows: Sequence[AblationRow], settings: dict[str, dict[str, object]], base: Path,
                data_root: Path | None) -> dict[str, Path]:
    """The folder of each row's run below `base` by the row's name.

    A folder is named by a digest of the run's settings, its data and the runs that it starts from. Rows with
    the same settings therefore share a run, also across tables, and a changed preset leads to a new run.
    """
    folders = {}
    for row in rows:
        starts = [folders[name].name for name in row.starts.values()]
        data = data_root.resolve() if data_root else ""
        known_by = digest([row.stage, settings[row.name], starts, str(data)])
        folders[row.name] = base / f"{row.stage}_{known_by}"
    return folders


def command_line(row: AblationRow, folders: dict[str, Path], dataset: str, data_root: Path,
                 seed: int) -> list[str]:
    """The row's script and flags, with the folders of the runs it starts from in place of their marks."""
    out = folders[row.name]
    command = [f"{SCRIPTS / row.stage}.py", "--dataset", dataset, "--data-root", str(data_root),
               "--out", str(out), "--seed", str(seed)]
    for flag in row.flags:
        for mark, name in row.starts.items():
            flag = flag.replace("{" + mark + "}", str(folders[name]))
        command.append(flag)
    if (out / "args.json").exists() and row.stage != "make_pseudo":  # which resumes without being told
        command.append("--resume")
    return command


def finished_miou(out: Path) -> float | None:
    """The mIoU in percent of a finished run, or None."""
    result = out / "result.json"
    return read_json(result).get("miou") if result.exists() else None


def run_row(name: str, command: Sequence[str], out: Path, seed: int) -> float:
    """Run a row's command, unless its run in `out` is finished; its mIoU in percent.

    NaN where the run failed; one line on stderr then says why. KeyboardInterrupt where it was interrupted.
    """
    miou = finished_miou(out)
    if miou is not None:
        return miou
    begin = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    log = out / "output.txt"
    with open(log, "wb") as output:
        code = subprocess.run([sys.executable, *command], stdout=output, stderr=subprocess.STDOUT,
                              env=UTF8_OUTPUT).returncode
    if code in INTERRUPTED:
        raise KeyboardInterrupt
    miou = finished_miou(out)
    if code == 0 and miou is not None:
        print(f"seed {seed}  {name:<40} {miou:6.2f}  {time.perf_counter() - begin:.0f} s", flush=True)
        return miou
    reason = "there are no masks to score the CAMs with"
    if code:
        reason = last_line(log.read_text(encoding="utf-8", errors="replace"), code)
    print(f"error: row {name!r}, seed {seed}: {reason} (see {log})", file=sys.stderr, flush=True)
    return float("nan")


def run_seed(rows: Sequence[AblationRow], folders: dict[str, Path], dataset: str, data_root: Path,
             seed: int) -> dict[str, float]:
    """Every row's mIoU with one seed by its name; NaN where its run, or a run that it starts from, failed."""
    miou = {}
    tried = {}  # the same by folder, because rows may share a run
    for row in rows:
        out = folders[row.name]
        if any(np.isnan(miou[name]) for name in row.starts.values()):
            tried[out] = float("nan")
        if out not in tried:
            tried[out] = run_row(row.name, command_line(row, folders, dataset, data_root, seed), out, seed)
        miou[row.name] = tried[out]
    return miou


def world_changes(n_train: int, co_occurrence: float, smallest: float) -> list[str]:
    """The arguments of `draw_world` that are not the usual ones, such as ["co_occurrence 0.9"]."""
    changed = []
    if n_train != N_TRAIN:
        changed.append(f"n_train {n_train}")
    if co_occurrence != CO_OCCURRENCE:
        changed.append(f"co_occurrence {co_occurrence:g}")
    if smallest != SMALLEST_OBJECT:
        changed.append(f"smallest {smallest:g}")
    return changed


def chosen_words(name: str, runs: Sequence[Path], worlds: Sequence[Path | None], picture: Path) -> str:
    """Markdown on the words that a row's runs chose, counted over all seeds; draws the radar into `picture`.

    worlds: for each run the toy world that it was trained on, whose sub-types are known, or None.
    """
    choices = []
    for run, world in zip(runs, worlds):
        truth = toy_truth(world, "train") if world else None
        choices.append((read_choices(run / "prompts.json"), truth))
    return (f"\nWords chosen by {name}, counted over all seeds (POLE Fig. 4):\n\n"
            f"{report(choices, picture)}\n![chosen words]({picture.name})\n")


def check_arguments(args: argparse.Namespace, changed: Sequence[str]) -> None:
    """InputError on flags that do not go together; `changed`: what `world_changes` answers."""
    if changed and (args.dataset != "toy" or args.data_root):
        raise InputError("--images, --co-occurrence and --smallest change the toy worlds drawn here: "
                         "give them with --dataset toy and without --data-root")
    if args.dataset != "toy" and args.data_root is None:
        raise InputError(f"--data-root: give the folder of the {args.dataset} data set")
    for name in ("cam_weights", "weaktr_weights", "segmenter_weights"):
        file = getattr(args, name)
        if file is not None and not file.is_file():
            raise InputError(f"--{name.replace('_', '-')} {file}: no such file")
    if args.segments is not None and not args.segments.is_dir():
        raise InputError(f"--segments {args.segments}: no such folder")


def page_name(args: argparse.Namespace) -> str:
    """TABLE.md, or TABLE_DIGEST.md where the command line asks for another part or form of the table."""
    choices = [args.flags, args.only, args.through, args.first_seed]
    files = [args.cam_weights, args.weaktr_weights, args.segments, args.segmenter_weights]
    if any(files):
        choices += [str(file) for file in files]
    return f"{args.table}_{digest(choices)}.md" if any(choices) else f"{args.table}.md"


def heading(args: argparse.Namespace, title: str, changed: Sequence[str]) -> str:
    """The paragraph above the table: what its figures are and what they were made with."""
    last_seed = args.first_seed + args.seeds - 1
    text = (f"{title}. Data set: {args.dataset}. Seeds: {args.first_seed} to {last_seed}. "
            "Figures are mIoU in percent, mean ± standard deviation over the seeds. CAMs are scored at the "
            "best background threshold and pseudo masks at their own threshold, both on the training split; "
            "segmenters are scored on held-out images.")
    if args.cam_weights:
        text += f" The ResNet's CAMs are those of {args.cam_weights.name}."
    if args.weaktr_weights:
        text += f" WeakTr's CAMs are those of {args.weaktr_weights.name}."
    if args.flags:
        text += f" Added to every train_prompt row: {' '.join(args.flags)}."
    if changed:
        text += f" Toy worlds with {', '.join(changed)}."
    return text


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    changed = world_changes(args.images, args.co_occurrence, args.smallest)
    check_arguments(args, changed)
    table = read_json(ABLATION_TABLES)[args.table]
    read = read_rows(table, args.dataset, args.flags or ())
    released = (args.cam_weights, args.weaktr_weights)
    table_rows = {name: with_released_cams(row, *released) for name, row in read.items()}
    for name in args.only or ():
        if name not in table_rows:
            raise InputError(f"--only {name!r}: the rows are {', '.join(map(repr, table_rows))}")
    through = args.through or table.get("through", "train_prompt")
    mask_flags = shlex.split(table.get("make_pseudo", ""))
    shown = [row for row in table_rows.values() if args.only is None or row.name in args.only]
    later = []
    for row in shown:
        later += later_stages(row, through, args.dataset, mask_flags, args.segments, args.segmenter_weights)
    shown = shown + later
    baseline = with_released_cams(BASELINE, *released)
    known = {baseline.name: baseline, **table_rows, **{row.name: row for row in shown}}
    rows = with_starts(shown, known)
    settings = settings_by_row(args.dataset, rows)  # a wrong flag ends the program here, before any training

    base = args.runs / args.dataset / "_".join(["ablate", *changed]).replace(" ", "_")
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    data = {}  # by seed: the folder of the data set
    folders = {}  # by seed: the folder of each row's run
    results = {}  # by seed: the mIoU of each row
    for seed in seeds:
        data[seed] = args.data_root or base / f"seed{seed}" / "data"
        if args.data_root is None and not (data[seed] / RECIPE).exists():
            draw_world(data[seed], seed, args.images, co_occurrence=args.co_occurrence,
                       smallest=args.smallest)
        folders[seed] = run_folders(rows, settings, base / f"seed{seed}", args.data_root)
        results[seed] = run_seed(rows, folders[seed], args.dataset, data[seed], seed)
    miou = {row.name: np.array([results[seed][row.name] for seed in seeds]) for row in shown}

    page = base / page_name(args)
    published_on = "COCO" if args.dataset == "coco14" else "VOC"
    text = f"{heading(args, table['title'], changed)}\n\n{markdown(shown, miou, published_on)}"
    radar = table.get("radar")
    if radar in miou and np.isfinite(miou[radar]).all():
        runs = [folders[seed][radar] for seed in seeds]
        worlds = [data[seed] if args.dataset == "toy" else None for seed in seeds]
        text += chosen_words(radar, runs, worlds, page.with_name(f"{page.stem}_names.png"))
    write_text(text, page)
    print(f"\n{text}\nwritten to {page}")
    failed = sum(np.isnan(values).sum() for values in miou.values())
    if failed:
        raise InputError(f"{failed} of {len(shown) * args.seeds} runs failed, see above; "
                         "the table shows the others")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
