"""Run a table of ablations over seeds: `python -m clipwsss.ablate --table pole1 --dataset toy`.

The tables are assets/tables.json. A table has a `title` and `rows`; `reference` names the row that the
others are compared with, `radar` one whose chosen words are counted, `through` the stage that rows are
carried to, `papers` names and figures that the papers print and no row has. A row has a `name`, `flags`,
flags of one data set by its name, `stage` (or train_prompt), `datasets` it is limited to, `against` (rows
to compare it with), `paper` (its figure, or a list of its own, its masks' and its segmenter's), `needs`: an
earlier row, `{needs}` its folder in flags, `baseline`: a row of train_cam to start from.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .datasets import DATASETS
from .errors import InputError, run_script
from .files import atomic_path
from .flags import Parser, real, whole
from .guidance.selection import read_choices, report, toy_truth
from .pictures import save
from .report.charts import bars, markdown
from .run import FREE_TO_CHANGE
from .toy.scenes import CO_OCCURRENCE, LARGEST, SMALLEST, TINIEST
from .toy.world import RECIPE, WorldSettings, draw_world

SCRIPTS = Path(__file__).resolve().parents[1]
TABLES = Path(__file__).parent / "assets" / "tables.json"
# What a stage is given beside a row's flags; {baseline} stands for the folder of the baseline's run.
INPUTS = {"train_cam": (), "train_prompt": ("--init", "{baseline}/generator.pt", "--cams", "{baseline}/cams"),
          "make_pseudo": ("--cams", "{baseline}/cams"), "train_seg": ("--masks", "{baseline}/masks")}
THROUGH = ("train_prompt", "make_pseudo", "train_seg")
# Where and on what a row runs, not what it is; a method is no more than the settings it fills in.
WHERE = FREE_TO_CHANGE | {"dataset", "data_root", "runs", "out", "seed", "method", "clip_cache"}
INTERRUPTED = (130, -2)


class AblationRow(NamedTuple):
    """A table's row on one data set: a script, its flags, and the rows it starts from, the baseline first."""
    name: str
    stage: str
    flags: tuple[str, ...] = ()
    starts: tuple["AblationRow", ...] = ()
    against: tuple[str, ...] = ()
    paper: tuple[str, ...] = ()  # its figure, its masks' and its segmenter's, as far as known


BASELINE = AblationRow("CAM", "train_cam")  # what every train_prompt row starts from


def get_parser() -> argparse.ArgumentParser:
    tables = json.loads(TABLES.read_text())
    parser = Parser(prog="python -m clipwsss.ablate", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--table", choices=sorted(tables), required=True,
        help="; ".join(f"{name}: {table['title']}" for name, table in tables.items()).replace("%", "%%"))
    add("--dataset", choices=DATASETS, default="toy", help="which data")
    add("--data-root", type=Path, help="its folder (toy: one world is drawn per seed)")
    add("--runs", type=Path, default=Path("runs"), help="everything goes to RUNS/DATASET/ablate*")
    add("--images", type=whole(1), default=WorldSettings().n_train, help="toy: training images of each drawn world")
    add("--co-occurrence", type=real(0, 1), default=CO_OCCURRENCE,
        help="toy: how often a class has its ground")
    add("--smallest", type=real(TINIEST, LARGEST), default=SMALLEST,
        help="toy: half-size of the smallest object over the image's side")
    add("--seeds", type=whole(1), default=3, help="runs of each row, one seed each")
    add("--first-seed", type=whole(0), default=0, help="the seed of the first of them; the others follow")
    add("--through", choices=THROUGH, help="carry every row to this stage (default: the table's own)")
    add("--only", nargs="+", metavar="ROW", help="run only these rows")
    add("--jobs", type=whole(1, 256), default=1, help="seeds run at the same time, sharing the processors")
    add("--flags", nargs=argparse.REMAINDER, default=[],
        help="flags for every train_prompt row, last on the line")
    return parser


def rows_of(table: dict, dataset: str, extra: Sequence[str] = ()) -> dict[str, AblationRow]:
    """The rows of a table on a data set by name; `extra` flags end those of every train_prompt row."""
    rows: dict[str, AblationRow] = {}
    for entry in table["rows"]:
        if dataset in entry.get("datasets", DATASETS):
            name, stage = entry["name"], entry.get("stage", "train_prompt")
            flags, starts = [*entry["flags"], *entry.get(dataset, [])], []
            if stage == "train_prompt":
                flags += extra
                starts = [rows.get(entry.get("baseline"), BASELINE)]
                starts += [rows[entry["needs"]]] if "needs" in entry else []
            against, paper = entry.get("against", [table.get("reference", name)]), entry.get("paper", ())
            paper = (paper,) if isinstance(paper, str) else tuple(paper)
            rows[name] = AblationRow(name, stage, tuple(flags), tuple(starts), tuple(against), paper)
    return rows


def carried(rows: Sequence[AblationRow], through: str, dataset: str, flags: Sequence[str] = ()) -> list[AblationRow]:
    """These rows and, of each, its pseudo masks (made with `flags`) and segmenter as far as `through`."""
    followers = []
    for row in rows:
        own = "none" if "--generator" in row.flags else "{needs}/generator.pt"
        start = ("--weights", own) if dataset == "toy" else ()  # its segmenter starts from the generator
        masks = AblationRow(f"{row.name}, masks", "make_pseudo", tuple(flags), (row,),
                    tuple(f"{name}, masks" for name in row.against), row.paper[1:2])
        segmenter = AblationRow(f"{row.name}, segmenter", "train_seg", start, (masks, row),
                        tuple(f"{name}, segmenter" for name in row.against), row.paper[2:])
        followers += [masks, segmenter][:THROUGH.index(through)]
    return [*rows, *followers]


def with_starts(rows: Iterable[AblationRow]) -> list[AblationRow]:
    """These rows, each after what it starts from, without repetition."""
    return list(dict.fromkeys(item for row in rows for item in (*with_starts(row.starts), row)))


def ask(dataset: str, row: AblationRow) -> dict[str, object]:
    """A row's settings that are unlike its script's own, as the script tells; InputError on bad flags."""
    command = [sys.executable, f"{SCRIPTS / row.stage}.py", "--dataset", dataset, *row.flags, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"row {row.name!r}: {why(done.stderr, done.returncode)}")
    told = json.loads(done.stdout)
    return {name: value for name, value in sorted(told["settings"].items())
            if name not in WHERE and value != told["defaults"][name]}


def ask_all(dataset: str, rows: Iterable[AblationRow]) -> dict[AblationRow, dict[str, object]]:
    """`ask` of these rows and all that they start from, a few at a time: a script takes seconds to start."""
    rows = with_starts(rows)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(rows, pool.map(lambda row: ask(dataset, row), rows)))


def why(output: str, code: int) -> str:
    """Why a script stopped: the last line that it printed, else its exit status."""
    last = output.strip().rpartition("\n")[2]
    return re.sub(r"^(\S+: )?error: ", "", last) or f"exit status {code}"


def finished(out: Path) -> float | None:
    """The mIoU that a finished run ended with, else None."""
    result = out / "result.json"
    return json.loads(result.read_text()).get("miou") if result.exists() else None


@dataclass
class Ablation:
    """The runs of rows on one data set, below the folder `base`: where they lie and how they are made.

    settings: what `ask_all` answered; data_root: None for a toy world per seed.
    """
    base: Path
    dataset: str
    settings: dict[AblationRow, dict[str, object]]
    data_root: Path | None = None
    drawn: WorldSettings = WorldSettings()
    interrupted: bool = False

    def out(self, row: AblationRow, seed: int) -> Path:
        """A run's folder, named for its settings, its data and the runs it starts from.

        So rows of the same settings share it, whatever their table, and changed presets meet no older run.
        """
        settings, title = self.settings[row], row.stage
        before = [self.out(start, seed).name for start in row.starts]
        data = str(self.data_root.resolve()) if self.data_root else ""
        number = zlib.crc32(json.dumps([row.stage, settings, before, data]).encode())
        if title == "train_prompt":
            title = f"{settings.get('class_prompt', 'name')}_{settings.get('background_prompt', 'none')}"
        return self.base / f"seed{seed}" / f"{title}_{number:08x}"

    def world(self, seed: int) -> Path:
        """The data's folder: the user's, or this seed's own toy world, which is drawn if need be."""
        root = self.data_root or self.base / f"seed{seed}" / "data"
        if not self.data_root and not (root / RECIPE).exists():
            draw_world(root, seed, **self.drawn._asdict())
        return root

    def command(self, row: AblationRow, seed: int) -> list[str]:
        """A run's command line without the interpreter."""
        out, flags = self.out(row, seed), [*INPUTS[row.stage], *row.flags]
        for mark, start in zip(("{baseline}", "{needs}"), row.starts):
            flags = [flag.replace(mark, str(self.out(start, seed))) for flag in flags]
        resume = ["--resume"] if (out / "args.json").exists() and row.stage != "make_pseudo" else []
        return [f"{SCRIPTS / row.stage}.py", "--dataset", self.dataset, "--data-root", str(self.world(seed)),
                "--out", str(out), "--seed", str(seed), *flags, *resume]

    def run(self, row: AblationRow, seed: int) -> float:
        """A row's mIoU in percent with one seed, of its finished run where there is one.

        NaN where it failed; one line says why.
        """
        out, begin = self.out(row, seed), time.perf_counter()
        if (miou := finished(out)) is not None:
            return miou
        if self.interrupted:
            raise KeyboardInterrupt
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "output.txt", "w") as output:
            command = [sys.executable, *self.command(row, seed)]
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        if code in INTERRUPTED:
            self.interrupted = True
            raise KeyboardInterrupt
        miou = None if code else finished(out)
        if miou is None:
            reason = why((out / "output.txt").read_text(), code) if code else "no masks to score CAMs with"
            print(f"error: row {row.name!r}, seed {seed}: {reason} (see {out / 'output.txt'})",
                  file=sys.stderr, flush=True)
            return float("nan")
        print(f"seed {seed}  {row.name:<40} {miou:6.2f}  {time.perf_counter() - begin:.0f} s", flush=True)
        return miou

    def run_seed(self, rows: Sequence[AblationRow], seed: int) -> list[float]:
        """The rows' mIoU with one seed; NaN where a run, or one that it starts from, failed."""
        miou: dict[Path, float] = {}
        for row in with_starts(rows):
            out, starts = self.out(row, seed), [miou[self.out(start, seed)] for start in row.starts]
            if out not in miou:
                miou[out] = float("nan") if np.isnan(starts).any() else self.run(row, seed)
        return [miou[self.out(row, seed)] for row in rows]

    def run_all(self, rows: Sequence[AblationRow], seeds: range, jobs: int) -> dict[str, NDArray]:
        """Every row's mIoU [seeds] by its name; `jobs` seeds run at the same time."""
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(self.run_seed, rows, seed) for seed in seeds]
            try:
                columns = np.array([future.result() for future in futures])
            except BaseException:
                self.interrupted = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return {row.name: column for row, column in zip(rows, columns.T)}

    def chosen_words(self, row: AblationRow, seeds: range, picture: Path) -> str:
        """The words that a row's runs chose, all seeds together: Markdown, and a radar `picture`."""
        tables = [(read_choices(self.out(row, seed) / "prompts.json"),
                   toy_truth(self.world(seed), "train") if self.dataset == "toy" else None)
                  for seed in seeds]
        return (f"\nWords that {row.name} chose, all seeds together (POLE Fig. 4):\n\n"
                f"{report(tables, picture)}\n![chosen words]({picture.name})\n")


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    drawn = WorldSettings(args.images, args.co_occurrence, args.smallest)
    unusual = [f"{name} {value:g}" for (name, value), usual in zip(drawn._asdict().items(), WorldSettings())
               if value != usual]
    if unusual and (args.dataset != "toy" or args.data_root):
        raise InputError("--images, --co-occurrence, --smallest: of worlds drawn here, --dataset toy without "
                         "--data-root")
    if args.dataset != "toy" and args.data_root is None:
        raise InputError(f"--data-root: say where the {args.dataset} data is")
    table = json.loads(TABLES.read_text())[args.table]
    known = rows_of(table, args.dataset, args.flags)
    if unknown := set(args.only or ()) - set(known):
        raise InputError(f"--only {unknown.pop()!r}: the rows are {', '.join(map(repr, known))}")
    rows = [row for name, row in known.items() if name in (args.only or known)]
    rows = carried(rows, args.through or table.get("through", "train_prompt"), args.dataset,
                   table.get("make_pseudo", ()))

    settings = ask_all(args.dataset, rows)  # a bad flag shows before hours of training, not after
    base = args.runs / args.dataset / "_".join(["ablate", *unusual]).replace(" ", "_")
    ablation = Ablation(base, args.dataset, settings, args.data_root, drawn)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    values = ablation.run_all(rows, seeds, args.jobs)
    part = [word for word in (*args.flags, *(args.only or ()), args.through, args.first_seed) if word]
    page = base / f"{args.table}{f'_{zlib.crc32(str(part).encode()):08x}' if part else ''}.md"
    text = (f"{table['title']}. {args.dataset}: CAM mIoU at the best background threshold, training split "
            "(masks: at their own threshold; segmenter: on held-out images), mean ± standard deviation over "
            f"seeds {seeds[0]} to {seeds[-1]}.")
    text += f" Every train_prompt row with {' '.join(args.flags)}." if args.flags else ""
    text += f" Worlds of {', '.join(unusual)}." if unusual else ""
    text += f"\n\n{markdown(rows, values, table.get('papers', ()))}\n![{args.table}]({page.stem}.png)\n"
    title = f"{args.table}, {args.dataset}: mIoU %, mean ± std, a dot for each seed"
    finite = [row[np.isfinite(row)] for row in values.values()]
    save(bars(list(values), finite, title), page.with_suffix(".png"))
    radar = known.get(table.get("radar"))
    if radar in rows and np.isfinite(values[radar.name]).all():
        text += ablation.chosen_words(radar, seeds, page.with_name(f"{page.stem}_names.png"))
    with atomic_path(page) as temporary:
        temporary.write_text(text)
    print(f"\n{text}\nwritten to {page}")
    failed, runs = sum(np.isnan(row).sum() for row in values.values()), len(rows) * args.seeds
    if failed:
        raise InputError(f"{failed} of {runs} runs failed, see above; the others are in the table")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
