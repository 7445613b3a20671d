"""Run a table of ablations over seeds and write it as Markdown: `python -m clipwsss.ablate --table main --dataset toy`."""
import argparse
import json
import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .datasets import DATASETS
from .engine import atomic_path
from .errors import InputError, run_script
from .options import stage_folder

TABLES = Path(__file__).parent / "assets" / "tables.json"
SCRIPTS = Path(__file__).resolve().parents[1]


def get_parser() -> argparse.ArgumentParser:
    tables = json.loads(TABLES.read_text())
    parser = argparse.ArgumentParser(prog="python -m clipwsss.ablate", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--table", choices=sorted(tables), required=True, help="; ".join(f"{k}: {v['title']}" for k, v in tables.items()))
    add("--dataset", choices=DATASETS, default="toy", help="which data")
    add("--data-root", type=Path, help="its folder (toy: one world is drawn per seed)")
    add("--runs", type=Path, default=Path("runs"), help="everything goes to RUNS/DATASET/ablate")
    add("--seeds", type=int, default=3, help="runs of each row, seeds 0, 1, ...")
    add("--only", nargs="+", metavar="ROW", help="run only these rows")
    add("--jobs", type=int, default=1, help="seeds run at the same time, each on its share of the processors")
    add("--flags", nargs=argparse.REMAINDER, default=[], help="flags for every train_prompt row, last on the line")
    return parser


def finished(out: Path) -> float | None:
    """The best CAM mIoU that a finished run logged, else None."""
    log = out / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return next((row["miou"] for row in reversed(rows) if row["label"] == "cams"), None)


def run_row(row: dict, seed: int, args: argparse.Namespace, threads: int) -> float:
    """Run one row with one seed unless it is finished; its best CAM mIoU in percent."""
    base = args.runs / args.dataset / "ablate" / f"seed{seed}"
    stage = row.get("stage", "train_prompt")
    flags = [*row["flags"], *row.get(args.dataset, []), *(args.flags if stage == "train_prompt" else [])]
    slug = "".join(c if c.isalnum() else "_" for c in row["name"].lower()) + f"_{zlib.crc32(' '.join(flags).encode()):08x}"
    first = stage_folder(base, args.dataset, "train_cam")
    out = first if row["name"] == "CAM" else base / args.dataset / slug
    done = finished(out)
    if done is not None:
        return done
    data = args.data_root or base / "data"
    resume = ["--resume"] if (out / "args.json").exists() else []
    command = [sys.executable, str(SCRIPTS / f"{stage}.py"), "--dataset", args.dataset, "--data-root", str(data),
               "--runs", str(base), "--out", str(out), "--seed", str(seed), *resume, *flags]
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "output.txt", "w") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT,
                              env={**os.environ, "OMP_NUM_THREADS": str(threads)}).returncode
    done = finished(out)
    if code or done is None:
        last = (out / "output.txt").read_text().strip().splitlines()[-1:]
        raise InputError(f"row {row['name']!r}, seed {seed} failed: {' '.join(last)} (see {out / 'output.txt'})")
    print(f"seed {seed}  {row['name']:<34} {done:.2f}", flush=True)
    return done


def run_seed(rows: list[dict], seed: int, args: argparse.Namespace, threads: int) -> list[float]:
    """All rows of one seed, the baseline that the others start from first."""
    if args.dataset == "toy" and args.data_root is None:
        from .toy import RECIPE, draw_world
        root = args.runs / args.dataset / "ablate" / f"seed{seed}" / "data"
        if not (root / RECIPE).exists():
            draw_world(root, seed)
    run_row({"name": "CAM", "stage": "train_cam", "flags": []}, seed, args, threads)
    return [run_row(row, seed, args, threads) for row in rows]


def markdown(table: dict, rows: list[dict], values: np.ndarray, dataset: str) -> str:
    """The table: mean and standard deviation over seeds, every seed, and the paper's own figure."""
    lines = [f"{table['title']}. {dataset}, best-threshold CAM mIoU on the training split, {values.shape[1]} seeds.", "",
             "| row | mean | std | seeds | the paper's |", "|---|---|---|---|---|"]
    for row, found in zip(rows, values):
        spread = f"{found.std(ddof=1):.1f}" if len(found) > 1 else "-"
        lines.append(f"| {row['name']} | {found.mean():.1f} | {spread} | {' '.join(f'{v:.1f}' for v in found)} "
                     f"| {row.get('paper', '')} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if args.dataset != "toy" and args.data_root is None:
        raise InputError(f"--data-root: say where the {args.dataset} data is")
    table = json.loads(TABLES.read_text())[args.table]
    rows = [row for row in table["rows"] if not args.only or row["name"] in args.only]
    if not rows:
        raise InputError(f"--only: the rows of {args.table} are {', '.join(row['name'] for row in table['rows'])}")
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        values = np.array(list(pool.map(lambda seed: run_seed(rows, seed, args, threads), range(args.seeds)))).T
    text = markdown(table, rows, values, args.dataset)
    out = args.runs / args.dataset / "ablate" / f"{args.table}.md"
    with atomic_path(out) as temporary:
        temporary.write_text(text)
    print(f"\n{text}\nwritten to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
