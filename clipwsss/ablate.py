"""Run a table of ablations over seeds: `python -m clipwsss.ablate --table pole1 --dataset toy`.

The tables are data (assets/tables.json). A table has a `title` and `rows`; `reference` names the row that the
others are compared with, `radar` one whose chosen words are counted (POLE Fig. 4). A row has a `name`,
`flags`, flags of one data set under that data set's name, `stage` (default train_prompt), `datasets` it is
limited to, `against` (rows to compare it with), `paper` (its figure there), and `needs`: a row whose folder
`{needs}` stands for in its flags.
"""
import argparse
import json
import os
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import train_cam
import train_prompt

from .report.charts import bars
from .datasets import DATASETS
from .training import FREE_TO_CHANGE
from .files import atomic_path
from .errors import InputError, run_script
from .options import parse
from .pictures import save
from .guidance.selection import read_choices, report, toy_truth
from .toy.world import RECIPE, draw_world
from .toy.scenes import CO_OCCURRENCE

TABLES = Path(__file__).parent / "assets" / "tables.json"
STAGES = {"train_cam": train_cam, "train_prompt": train_prompt}
BASELINE = {"name": "CAM", "stage": "train_cam", "flags": []}  # what every train_prompt row starts from
# Where and on what a row runs, not what it is; a method is no more than the settings it fills in.
WHERE = FREE_TO_CHANGE | {"dataset", "data_root", "runs", "out", "seed", "method", "clip_cache"}
INTERRUPTED = (130, -2)


def get_parser() -> argparse.ArgumentParser:
    tables = json.loads(TABLES.read_text())
    parser = argparse.ArgumentParser(prog="python -m clipwsss.ablate", description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--table", choices=sorted(tables), required=True,
        help="; ".join(f"{name}: {table['title']}" for name, table in tables.items()).replace("%", "%%"))
    add("--dataset", choices=DATASETS, default="toy", help="which data")
    add("--data-root", type=Path, help="its folder (toy: one world is drawn per seed)")
    add("--runs", type=Path, default=Path("runs"), help="everything goes to RUNS/DATASET/ablate*")
    add("--co-occurrence", type=float, default=CO_OCCURRENCE,
        help="toy: how often a class is on its own background in the worlds that are drawn")
    add("--seeds", type=int, default=3, help="runs of each row, seeds 0, 1, ...")
    add("--only", nargs="+", metavar="ROW", help="run only these rows")
    add("--jobs", type=int, default=1, help="seeds run at the same time, each on its share of the processors")
    add("--flags", nargs=argparse.REMAINDER, default=[],
        help="flags for every train_prompt row, last on the line")
    return parser


def finished(out: Path) -> float | None:
    """The best CAM mIoU that a finished run logged, else None."""
    log = out / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return next((row["miou"] for row in reversed(rows) if row["label"] == "cams"), None)


class Ablation:
    """One table on one data set: what each row's runs are and where they lie."""

    def __init__(self, table: dict, args: argparse.Namespace):
        self.args = args
        world = "" if args.co_occurrence == CO_OCCURRENCE else f"_{args.co_occurrence:g}"
        self.base = args.runs / args.dataset / f"ablate{world}"
        self.table = {}
        for row in table["rows"]:
            if args.dataset in row.get("datasets", DATASETS):
                row = {"stage": "train_prompt", **row}
                own = [*row["flags"], *row.get(args.dataset, [])]
                own += args.flags if row["stage"] == "train_prompt" else []
                self.table[row["name"]] = {**row, "flags": own}
        self.rows = [row for name, row in self.table.items() if name in (args.only or self.table)]
        for name in args.only or ():
            if name not in self.table:
                raise InputError(f"--only {name!r}: the rows are {', '.join(map(repr, self.table))}")
        self.failed: set[Path] = set()
        self.interrupted = False

    def sources(self, row: dict) -> list[dict]:
        """The rows whose runs this one starts from: the baseline, and the one it needs."""
        needed = [self.table[row["needs"]]] if "needs" in row else []
        return [] if row["stage"] == "train_cam" else [BASELINE, *needed]

    def settings(self, row: dict) -> dict[str, str]:
        """What tells a row's runs from others: settings unlike the script's own; InputError on bad flags."""
        parser = STAGES[row["stage"]].get_parser()
        defaults = vars(parser.parse_args([]))

        def error(message: str) -> None:
            raise InputError(f"row {row['name']!r}: {message}")

        parser.error = error
        argv = ["--dataset", self.args.dataset, "--data-root", str(self.base), *row["flags"]]
        return {key: str(value) for key, value in sorted(vars(parse(parser, argv, row["stage"])).items())
                if key not in WHERE and value != defaults[key]}

    def out(self, row: dict, seed: int) -> Path:
        """A run's folder, named for its settings, its data and the runs it starts from.

        So rows of the same settings share it, whatever their table, and changed presets meet no older run.
        """
        settings, title = self.settings(row), row["stage"]
        before = [self.out(source, seed).name for source in self.sources(row)]
        data = str(self.args.data_root.resolve()) if self.args.data_root else ""
        number = zlib.crc32(json.dumps([row["stage"], settings, before, data]).encode())
        if title == "train_prompt":
            title = f"{settings.get('class_prompt', 'name')}_{settings.get('background_prompt', 'none')}"
        return self.base / f"seed{seed}" / f"{title}_{number:08x}"

    def data_root(self, seed: int) -> Path:
        """The data's folder: the user's, or this seed's own toy world, which is drawn if need be."""
        root = self.args.data_root or self.base / f"seed{seed}" / "data"
        if not self.args.data_root and not (root / RECIPE).exists():
            draw_world(root, seed, co_occurrence=self.args.co_occurrence)
        return root

    def command(self, row: dict, seed: int) -> list[str]:
        """A run's command line without the interpreter."""
        inputs, needed = [], ""
        for source in self.sources(row):
            needed = self.out(source, seed)
            inputs = inputs or ["--init", needed / "generator.pt", "--cams", needed / "cams"]
        flags = [flag.replace("{needs}", str(needed)) for flag in row["flags"]]
        resume = ["--resume"] if (self.out(row, seed) / "args.json").exists() else []
        return [str(part) for part in (
            STAGES[row["stage"]].__file__, "--dataset", self.args.dataset, "--data-root",
            self.data_root(seed), "--runs", self.args.runs, "--out", self.out(row, seed), "--seed", seed,
            *inputs, *flags, *resume)]

    def run(self, row: dict, seed: int) -> float:
        """A row's best CAM mIoU in percent with one seed, of its finished run where there is one.

        NaN where it, or what it starts from, failed; one line says why.
        """
        out = self.out(row, seed)
        if (done := finished(out)) is not None:
            return done
        if out in self.failed or np.isnan([self.run(source, seed) for source in self.sources(row)]).any():
            return float("nan")
        if self.interrupted:
            raise KeyboardInterrupt
        command, begin = [sys.executable, *self.command(row, seed)], time.perf_counter()
        threads = os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // self.args.jobs)
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "output.txt", "w") as output:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT,
                                  env={**os.environ, "OMP_NUM_THREADS": str(threads)}).returncode
        if code in INTERRUPTED:
            self.interrupted = True
            raise KeyboardInterrupt
        done = finished(out)
        if code == 0 and done is not None:
            spent = time.perf_counter() - begin
            print(f"seed {seed}  {row['name']:<40} {done:6.2f}  {spent:.0f} s", flush=True)
            return done
        why = "no masks to score CAMs with"
        if code:
            last = " ".join((out / "output.txt").read_text().strip().splitlines()[-1:])
            why = last.removeprefix("error: ") or f"exit status {code}"
        print(f"error: row {row['name']!r}, seed {seed}: {why} (see {out / 'output.txt'})", file=sys.stderr,
              flush=True)
        self.failed.add(out)
        return float("nan")


def spread(values: np.ndarray, sign: str = "") -> str:
    """Mean and standard deviation of the values that are numbers, as text."""
    found = values[np.isfinite(values)]
    if not len(found):
        return "failed"
    return f"{found.mean():{sign}.1f}" + (f" ± {found.std(ddof=1):.1f}" if len(found) > 1 else "")


def markdown(rows: list[dict], reference: str | None, values: dict[str, np.ndarray], caption: str) -> str:
    """The table: mean ± standard deviation, every seed, paired differences, the paper's figure."""
    lines = [caption, "", "| row | mIoU % | seeds | difference (to) | the paper's, VOC |", "|---" * 5 + "|"]
    for row in rows:
        name, found = row["name"], values[row["name"]]
        seeds = " ".join("-" if np.isnan(value) else f"{value:.1f}" for value in found)
        others = [other for other in row.get("against", [reference]) if other in values and other != name]
        differences = "; ".join(f"{spread(found - values[other], '+')} ({other})" for other in others)
        lines.append(f"| {name} | {spread(found)} | {seeds} | {differences} | {row.get('paper', '')} |")
    return "\n".join(lines) + "\n"


def write_results(table: dict, ablation: Ablation, values: dict[str, np.ndarray]) -> str:
    """Write the table and its pictures beside each other; the table's text."""
    args, seeds = ablation.args, ablation.args.seeds
    part = [*args.flags, *(args.only or ())]
    out = ablation.base / f"{args.table}{f'_{zlib.crc32(str(part).encode()):08x}' if part else ''}.md"
    extra = f" Every train_prompt row with {' '.join(args.flags)}." if args.flags else ""
    if args.co_occurrence != CO_OCCURRENCE:
        extra += f" Worlds of co-occurrence {args.co_occurrence:g}."
    caption = (f"{table['title']}. {args.dataset}: CAM mIoU at the best background threshold, training "
               f"split, mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}.{extra}")
    text = markdown(ablation.rows, table.get("reference"), values, caption)
    text += f"\n![{args.table}]({out.stem}.png)\n"
    title = f"{args.table}, {args.dataset}: CAM mIoU %, mean ± std, a dot for each seed"
    finite = [row[np.isfinite(row)] for row in values.values()]
    save(bars(list(values), finite, title), out.with_suffix(".png"))
    shown = ablation.table.get(table.get("radar"))
    if shown is not None and np.isfinite(values.get(shown["name"], [np.nan])).all():
        tables = []
        for seed in range(seeds):
            truth = toy_truth(ablation.data_root(seed), "train") if args.dataset == "toy" else None
            tables.append((read_choices(ablation.out(shown, seed) / "prompts.json"), truth))
        picture = out.with_name(f"{out.stem}_names.png")
        text += (f"\nWords that {shown['name']} chose, all seeds together (POLE Fig. 4):\n\n"
                 f"{report(tables, picture)}\n![chosen words]({picture.name})\n")
    with atomic_path(out) as temporary:
        temporary.write_text(text)
    return f"{text}\nwritten to {out}"


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if args.co_occurrence != CO_OCCURRENCE and (args.dataset != "toy" or args.data_root):
        raise InputError("--co-occurrence is of worlds drawn here: only for --dataset toy, no --data-root")
    if args.dataset != "toy" and args.data_root is None:
        raise InputError(f"--data-root: say where the {args.dataset} data is")
    if min(args.seeds, args.jobs) < 1:
        raise InputError(f"--seeds {args.seeds} --jobs {args.jobs}: at least 1 of each")
    table = json.loads(TABLES.read_text())[args.table]
    ablation = Ablation(table, args)
    for row in ablation.rows:
        ablation.settings(row)  # a bad flag shows before hours of training, not after
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(lambda seed: [ablation.run(row, seed) for row in ablation.rows], seed)
                   for seed in range(args.seeds)]
        try:
            columns = np.array([future.result() for future in futures])
        except BaseException:
            ablation.interrupted = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    values = {row["name"]: column for row, column in zip(ablation.rows, columns.T)}
    print(f"\n{write_results(table, ablation, values)}")
    failed = int(np.isnan(columns).sum())
    if failed:
        raise InputError(f"{failed} of {columns.size} runs failed, see above; the others are in the table")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
