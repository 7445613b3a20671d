"""One script's run folder: its settings, its log, its checkpoints and its last word."""
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from .distributed import barrier, is_main
from .errors import InputError, input_errors
from .files import load_weights, remove_leftovers, save_atomic, write_json
from .fingerprint import fingerprint

try:
    import fcntl
except ModuleNotFoundError:  # Windows: runs are not locked there
    fcntl = None

# What may differ between a run and its resumption: none of these changes a result.
FREE_TO_CHANGE = {"resume", "overwrite", "device", "workers", "pictures", "skip_bad", "dry_run", "quiet",
                  "max_pixels", "set_by", "stage", "inputs", "out", "runs", "clip_cache", "layout",
                  "tensorboard"}
# What runs leave: with any of these a folder holds a run, and --overwrite deletes them and nothing else.
MADE = ("result.json", "report.html", "thresholds.json", "prompts.json", "background_words.json",
        "last_*.pt", "generator.pt", "segmenter.pt", "affinity.pt", "*_prompts.pt", "cams/*.np[yz]",
        "labels/*.png", "masks/*.png", "predictions/*.png")


class Run:
    """One script's run folder: args.json, log.jsonl, result.json, checkpoints and outputs.

    A folder that holds a run needs `resume` (same settings, goes on) or `overwrite` (starts anew); one whose
    run has made nothing yet needs neither. `inputs`: by setting, the path that a run reads and its
    fingerprint. InputError, before anything is written, where the folder is another stage's or no run's, is
    locked by a living process, or its settings or inputs were others. Of several processes the main one
    writes.
    """

    def __init__(self, out: Path | str, config: dict, resume: bool = False, overwrite: bool = False,
                 inputs: dict[str, tuple[str, str]] | None = None):
        self.out, self.resume = Path(out), resume
        if resume and overwrite:
            raise InputError("--resume --overwrite: the one goes on, the other starts anew; give one of them")
        config = json.loads(json.dumps({**config, "inputs": inputs or {}}, default=str))
        if config.get("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter  # needs the optional package tensorboard
        if is_main():
            with input_errors(f"--out {self.out}: cannot write there: ", OSError):
                self._begin(config, overwrite)
        barrier()
        self.board = SummaryWriter(self.out) if config.get("tensorboard") and is_main() else None

    def _begin(self, config: dict, overwrite: bool) -> None:
        """Check the folder, lock it, clear it where asked to, write args.json."""
        stored = self.out / "args.json"
        made = sorted(path for pattern in MADE for path in self.out.glob(pattern))
        if stored.exists():
            self._compare(stored, config, overwrite, bool(made))
        elif self.resume:
            raise InputError(f"--resume: {self.out} holds no run to go on with; leave --resume out")
        elif made:
            raise InputError(f"--out {self.out}: {made[0]} was made by no run here; name another folder")
        self.out.mkdir(parents=True, exist_ok=True)
        self.lock = lock_folder(self.out)
        remove_leftovers(self.out)
        if not self.resume:
            for path in (*made, self.out / "log.jsonl"):
                path.unlink(missing_ok=True)
        self._keep_lines(lambda line: line["label"] != "result")
        write_json(config, stored)

    def _compare(self, stored: Path, config: dict, overwrite: bool, made: bool) -> None:
        """InputError where this command may not go on with, or write over, the run of args.json `stored`."""
        try:
            before = json.loads(stored.read_text())
            others = {key: mark for key, (_, mark) in dict(before.get("inputs", {})).items()}
        except (ValueError, TypeError, AttributeError) as error:
            if overwrite:
                return
            raise InputError(f"{stored}: damaged ({error}); --overwrite starts anew") from error
        stage = config.get("stage")
        if before.get("stage", stage) != stage:
            raise InputError(f"--out {self.out}: holds a run of {before['stage']}; name another folder")
        if overwrite or not made:
            return
        if not self.resume:
            raise InputError(f"{self.out} already holds a run: --resume goes on, --overwrite starts anew, "
                             "--out chooses another folder")
        inputs = config["inputs"]
        for key in sorted(inputs.keys() & others.keys()):
            if inputs[key][1] != others[key]:
                raise InputError(f"{self.out}: {inputs[key][0]} is no longer what this run was made from; "
                                 "--overwrite starts anew, --out chooses another folder")
        for key in sorted((config.keys() | before.keys()) - FREE_TO_CHANGE - inputs.keys()):
            if config.get(key) != before.get(key):
                raise InputError(f"{self.out}: --{key.replace('_', '-')} was {before.get(key)} and is "
                                 f"{config.get(key)} now; use the same value, --overwrite or another --out")

    def path(self, *parts: str) -> Path:
        """A path inside the run folder."""
        return self.out.joinpath(*parts)

    def log(self, **values: object) -> None:
        """Append one line to log.jsonl; its numbers go to TensorBoard too if that is asked for."""
        if not is_main():
            return
        with open(self.out / "log.jsonl", "a") as file:
            file.write(json.dumps(values, default=float) + "\n")
        if self.board:
            for name, value in values.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{values['label']}/{name}", value, values.get("epoch", 0))
            self.board.flush()

    def _keep_lines(self, wanted: Callable[[dict], bool]) -> None:
        """Take the other lines of log.jsonl out, and those that a killed run left incomplete."""
        path, lines, kept = self.out / "log.jsonl", [], []
        if path.exists():
            lines = path.read_text(errors="replace").splitlines()
        for line in lines:
            try:
                kept += [line] if wanted(json.loads(line)) else []
            except (ValueError, TypeError, KeyError):
                continue
        if kept != lines:
            path.write_text("".join(f"{line}\n" for line in kept))

    def result(self, **figures: object) -> None:
        """What the stage achieved, its last word: result.json, and a line of the log."""
        self.log(label="result", **figures)
        write_json(figures, self.out / "result.json")

    def make_room(self, weights: int) -> None:
        """InputError where the disk does not take checkpoints of so many bytes of weights, old and new."""
        needed, free = 6 * weights, shutil.disk_usage(self.out).free  # each with two moments of the optimiser
        if free < needed:
            raise InputError(f"--out {self.out}: checkpoints take {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB "
                             "are free; make room or name another folder")

    def save(self, label: str, epoch: int, **stateful: object) -> None:
        """Checkpoint everything with a state_dict after `epoch` epochs of the training `label`."""
        states = {name: item.state_dict() for name, item in stateful.items()}
        save_atomic({"epoch": epoch, **states}, self.out / f"last_{label}.pt")

    def restore(self, label: str, **stateful: object) -> int:
        """Load the checkpoint of this label when resuming; the number of epochs already done.

        The log's lines of later epochs, whose checkpoint was not written, are taken out.
        """
        path, epoch = self.out / f"last_{label}.pt", 0
        if self.resume and path.exists():
            checkpoint = load_weights(path)
            with input_errors(f"{path}: not a checkpoint of this run; --overwrite starts anew: ", Exception):
                for name, item in stateful.items():
                    item.load_state_dict(checkpoint[name])
                epoch = checkpoint["epoch"]
        if is_main():
            self._keep_lines(lambda line: line["label"] != label or line["epoch"] <= epoch)
        return epoch


def lock_folder(folder: Path) -> IO:
    """Lock a folder for this process; the system frees it however the process ends.

    InputError says which process on which machine has it, and since when.
    """
    file = open(folder / ".lock", "a+")
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise InputError(f"--out {folder}: {file.read().strip() or 'another process'} is at work here; wait "
                         "for it or name another folder") from None
    except OSError:  # a file system without locks
        pass
    file.truncate(0)
    since = time.strftime("%F %T")
    print(f"process {os.getpid()} on {socket.gethostname()} since {since}", file=file, flush=True)
    return file


def refuse_inside(flag: str, path: Path, data: Iterable[Path]) -> None:
    """InputError where what the flag names is, or lies in, one of the data's own folders."""
    for folder in {folder.resolve() for folder in data}:
        if path.resolve().is_relative_to(folder):
            raise InputError(f"{flag} {path}: lies in the data's own folder {folder}; name another place")


def refuse_overlap(out: Path, data_root: Path, data: Iterable[Path], inputs: dict[str, Path]) -> None:
    """InputError where results in `out` could touch what a run reads: the data's root, its files' folders
    `data`, or an input (setting -> file or folder)."""
    here = out.resolve()
    refuse_inside("--out", out, data)
    if data_root.resolve().is_relative_to(here):
        raise InputError(f"--out {out}: holds the data {data_root}; name another folder")
    for name, path in inputs.items():
        if path.resolve().is_relative_to(here):
            raise InputError(f"--out {out}: --{name.replace('_', '-')} {path} lies there, which is read; "
                             "name another folder")


def fingerprint_inputs(inputs: dict[str, Path]) -> dict[str, tuple[str, str]]:
    """Each input's path and fingerprint. Prints a line where one was made from what has changed since."""
    for path in inputs.values():
        stored = path.parent / "args.json"
        try:
            before = json.loads(stored.read_text())["inputs"].values()
            changed = [place for place, mark in before if Path(place).exists() and fingerprint(place) != mark]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if changed:
            print(f"note: {path} was made from {changed[0]}, which has changed since")
    return {name: (str(path.resolve()), fingerprint(path)) for name, path in inputs.items()}
