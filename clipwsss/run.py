"""One script's run folder: settings, log, checkpoints, result and lock, and fingerprints of what it reads."""
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO

from .distributed import barrier, rank
from .errors import InputError, input_errors
from .files import (TEMPORARY_FILES, load_weights, read_json, save_atomic, to_json, write_json,
                    write_text)

try:
    import fcntl
except ModuleNotFoundError:  # Windows: runs are not locked there
    fcntl = None

# Settings that change no result. They may differ between a run and its continuation by --resume.
FREE_ON_RESUME = {"resume", "overwrite", "device", "workers", "pictures", "skip_bad", "dry_run", "quiet",
                  "max_pixels", "set_by", "stage", "inputs", "out", "runs", "clip_cache", "layout",
                  "tensorboard", "corrections"}
# Files that runs write. A folder with any of them holds a run; --overwrite deletes them and no other file.
RUN_FILES = ("result.json", "report.html", "thresholds.json", "prompts.json", "quality.csv", "corrected.json",
             "last_*.pt", "generator.pt", "segmenter.pt", "affinity.pt", "*_prompts.pt", "*cams/*.np[yz]",
             "labels/*.png", "masks/*.png", "predictions/*.png")
TAIL = 1 << 14  # bytes at a file's end, where npz, PNG and torch's archives keep checksums of their contents


class Run:
    """One script's run folder: args.json, log.jsonl, result.json, checkpoints and outputs.

    config: the settings of the script. inputs: for each setting that names something to read, its path and
    fingerprint. A folder that holds a run needs `resume`, which continues it with the same settings and
    inputs, or `overwrite`, which deletes it first. A folder whose run has written no result or checkpoint yet
    needs neither. Of several processes the main one alone writes.

    InputError, before anything is written: the folder holds a run of another stage or files of another
    origin, a living process has locked it, or settings or inputs are not those of the run to continue.
    """

    def __init__(self, out: Path | str, config: dict, resume: bool = False, overwrite: bool = False,
                 inputs: dict[str, tuple[str, str]] | None = None):
        self.out = Path(out)
        self.resume = resume
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other: give one of them")
        config = json.loads(to_json({**config, "inputs": inputs or {}}))
        wants_tensorboard = bool(config.get("tensorboard"))
        if wants_tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # needs the optional package tensorboard
        if rank() == 0:
            with input_errors(f"--out {self.out}: cannot write there: ", OSError):
                self._refuse_other_run(config, overwrite)
                self.out.mkdir(parents=True, exist_ok=True)
                self.lock = lock_folder(self.out)
                # Delete what killed processes left half written, and an earlier run that is not continued.
                outdated = TEMPORARY_FILES
                if not resume:
                    outdated += (*RUN_FILES, "log.jsonl")
                for pattern in outdated:
                    for path in sorted(self.out.glob(pattern)):
                        path.unlink(missing_ok=True)
                self._keep_lines(lambda line: line["label"] != "result")
                write_json(config, self.out / "args.json")
        barrier()
        self.board = SummaryWriter(self.out) if wants_tensorboard and rank() == 0 else None

    def _refuse_other_run(self, config: dict, overwrite: bool) -> None:
        """InputError where the folder holds what this command may neither continue nor delete."""
        written: list[Path] = []
        for pattern in RUN_FILES:
            written += self.out.glob(pattern)
        written.sort()
        stored = self.out / "args.json"
        if not stored.exists():
            if self.resume:
                raise InputError(f"--resume: {self.out} holds no run to continue; leave --resume out")
            if written:
                raise InputError(f"--out {self.out}: {written[0]} was not made by a run of these scripts; "
                                 "choose another folder")
            return
        try:
            before = read_settings(stored)
        except InputError:
            if overwrite:
                return
            raise
        stage = config.get("stage")
        stage_before = before.get("stage", stage)
        if stage_before != stage:
            raise InputError(f"--out {self.out}: holds a run of {stage_before}; choose another folder")
        if overwrite or not written:
            return
        if not self.resume:
            raise InputError(f"--out {self.out}: already holds a run; --resume continues it, --overwrite "
                             "replaces it, --out chooses another folder")
        refuse_changed_inputs(self.out, before["inputs"], config["inputs"])
        refuse_changed_settings(self.out, before, config)

    def log(self, **values: object) -> None:
        """Append a line with these values to log.jsonl; with --tensorboard, write its numbers there too."""
        if rank() > 0:
            return
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(to_json(values) + "\n")
        if self.board:
            for name, value in values.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{values['label']}/{name}", value, values.get("epoch", 0))
            self.board.flush()

    def _keep_lines(self, is_wanted: Callable[[dict], bool]) -> None:
        """Keep the wanted lines of log.jsonl. A line that a killed run left incomplete is dropped too."""
        path = self.out / "log.jsonl"
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = []
        for line in lines:
            try:
                if is_wanted(json.loads(line)):
                    kept.append(line)
            except (ValueError, TypeError, KeyError):  # an incomplete line
                continue
        if kept != lines:
            write_text("".join(f"{line}\n" for line in kept), path)

    def result(self, **figures: object) -> None:
        """Write the final scores of the stage to result.json and as the last line of the log.

        Its `notes` are printed here, at the end of the run, where they are read.
        """
        for note in figures.get("notes", ()):
            print(f"note: {note}")
        self.log(label="result", **figures)
        write_json(figures, self.out / "result.json")

    def save(self, label: str, epoch: int, **stateful: object) -> None:
        """Write the state_dict of each object to last_LABEL.pt, after `epoch` epochs of training."""
        states = {name: item.state_dict() for name, item in stateful.items()}
        save_atomic({"epoch": epoch, **states}, self.out / f"last_{label}.pt")

    def restore(self, label: str, **stateful: object) -> int:
        """Load last_LABEL.pt into the objects and return the number of epochs that it has seen.

        Without --resume, or without this file, nothing is loaded and the number is 0. Lines of the log about
        later epochs, whose checkpoint was not written, are deleted.
        """
        path = self.out / f"last_{label}.pt"
        epoch = 0
        if self.resume and path.exists():
            checkpoint = load_weights(path)
            with input_errors(f"{path}: not a checkpoint of this run; --overwrite starts anew: ", Exception):
                for name, item in stateful.items():
                    item.load_state_dict(checkpoint[name])
                epoch = checkpoint["epoch"]
        if rank() == 0:
            self._keep_lines(lambda line: line["label"] != label or line["epoch"] <= epoch)
        return epoch


def read_settings(path: Path) -> dict:
    """The settings of an args.json, always with `inputs`. InputError where the file is damaged."""
    damaged = f"{path}: damaged; --overwrite starts anew"
    try:
        settings = read_json(path)
    except ValueError as error:
        raise InputError(f"{damaged} ({error})") from error
    if not isinstance(settings, dict):
        raise InputError(f"{damaged} (not an object of settings)")
    inputs = settings.setdefault("inputs", {})
    if not isinstance(inputs, dict):
        raise InputError(f"{damaged} (inputs is not an object)")
    for entry in inputs.values():
        if not isinstance(entry, list) or [type(part) for part in entry] != [str, str]:
            raise InputError(f"{damaged} (inputs: {entry} is not a path and a fingerprint)")
    return settings


def notes_of(folder: Path) -> list[str]:
    """The notes that a finished run of these scripts has left in its result.json; [] where there are none."""
    path = folder / "result.json"
    if not path.is_file():
        return []
    result = read_json(path)
    notes = result.get("notes", []) if isinstance(result, dict) else []
    return [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def refuse_changed_inputs(out: Path, before: dict[str, list[str]], now: dict[str, list[str]]) -> None:
    """InputError where an input has another fingerprint than before. Its path may have changed."""
    for name in sorted(before.keys() & now.keys()):
        path, mark = now[name]
        if before[name][1] != mark:
            raise InputError(f"--out {out}: {path} has changed since the run there began; --overwrite "
                             "replaces the run, --out chooses another folder")


def refuse_changed_settings(out: Path, before: dict, now: dict) -> None:
    """InputError where a setting that changes results differs. Inputs are compared by their fingerprints."""
    compared = (before.keys() | now.keys()) - FREE_ON_RESUME - now["inputs"].keys()
    for name in sorted(compared):
        if before.get(name) != now.get(name):
            raise InputError(f"--{name.replace('_', '-')} {now.get(name)}: the run in {out} has "
                             f"{before.get(name)}; use the same value, --overwrite or another --out")


def lock_folder(folder: Path) -> IO:
    """Lock a folder for this process. The system releases the lock however the process ends.

    InputError says which process on which machine has locked it, and since when.
    """
    file = open(folder / ".lock", "a+", encoding="utf-8")
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise InputError(f"--out {folder}: {holder} writes to this folder; wait for it to end or choose "
                         "another folder") from None
    except OSError:  # a file system without locks
        pass
    file.truncate(0)
    since = time.strftime("%F %T")
    print(f"process {os.getpid()} on {socket.gethostname()} since {since}", file=file, flush=True)
    return file


def refuse_overlap(flag: str, out: Path, data_folders: Iterable[Path], data_root: Path | None = None,
                   inputs: Mapping[str, Path] | None = None) -> None:
    """InputError where results in `out`, a file or folder that `flag` names, could overwrite what is read.

    data_folders: the folders of the data's images and masks. data_root: the folder of the whole data.
    inputs: for each setting that names something to read, the file or folder.
    """
    for folder in data_folders:
        if out.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{flag} {out}: lies in the data's folder {folder}; choose another place")
    if data_root and data_root.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{flag} {out}: contains the data folder {data_root}; choose another folder")
    for name, path in (inputs or {}).items():
        if path.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{flag} {out}: contains {path}, which --{name.replace('_', '-')} reads; choose "
                             "another folder")


def digest(values: Iterable[object]) -> str:
    """A hash, of 16 hexadecimal digits, of plain values in their order."""
    made = hashlib.blake2b(digest_size=8)
    for value in values:
        made.update(repr(value).encode() + b"\n")
    return made.hexdigest()


def fingerprint(path: Path | str) -> str:
    """Digest of a file's size and last bytes, or of the names and fingerprints of a folder's visible files.

    The time at which a file was written and the folder in which it lies make no difference.
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted(item for item in path.iterdir() if item.is_file() and not item.name.startswith("."))
        return digest((item.name, fingerprint(item)) for item in inside)
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        return digest((size, file.read()))


def fingerprint_inputs(inputs: Mapping[str, Path]) -> dict[str, tuple[str, str]]:
    """The path and fingerprint of each input.

    An input that a run made lies beside the args.json of that run, which names the run's own inputs. Where
    one of these has changed since, the input is out of date, and a line that says so is printed.
    """
    marks = {}
    for name, path in inputs.items():
        marks[name] = (str(path.resolve()), fingerprint(path))
        try:
            sources = read_settings(path.parent / "args.json")["inputs"].values()
            changed = [source for source, mark in sources
                       if Path(source).exists() and fingerprint(source) != mark]
        except (InputError, OSError):  # not made by a run of these scripts, or its inputs cannot be read
            continue
        if changed:
            print(f"note: {path} was made from {changed[0]}, which has changed since")
    return marks
