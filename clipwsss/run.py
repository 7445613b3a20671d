"""One script's run folder: its settings, its log, its checkpoints and its last word."""
import json
from pathlib import Path

from .distributed import barrier, is_main
from .errors import InputError
from .files import load_weights, save_atomic, write_json

# What may differ between a run and its resumption: none of these changes a result.
FREE_TO_CHANGE = {"resume", "overwrite", "device", "workers", "pictures", "skip_bad", "dry_run", "quiet",
                  "set_by", "layout"}


class Run:
    """One script's run folder: args.json, log.jsonl, result.json, checkpoints and outputs.

    A folder that holds a run needs `resume` (same settings, goes on) or `overwrite` (starts anew). Of several
    processes the main one writes.
    """

    def __init__(self, out: Path | str, config: dict, resume: bool = False, overwrite: bool = False):
        self.out, self.resume = Path(out), resume
        if is_main():
            self._begin(config, overwrite)
        barrier()

    def _begin(self, config: dict, overwrite: bool) -> None:
        """Check the folder, clear it where asked to, write args.json."""
        config = json.loads(json.dumps(config, default=str))
        stored = self.out / "args.json"
        if stored.exists() and self.resume:
            before = json.loads(stored.read_text())
            for key in sorted((config.keys() | before.keys()) - FREE_TO_CHANGE):
                if config.get(key) != before.get(key):
                    raise InputError(f"--resume: --{key.replace('_', '-')} was {before.get(key)} in {stored} "
                                     f"and is {config.get(key)} now; use the same value or --overwrite")
        elif stored.exists() and not overwrite:
            raise InputError(f"{self.out} already holds a run: --resume goes on, --overwrite starts anew, "
                             "--out chooses another folder")
        if overwrite and not self.resume:
            for pattern in ("log.jsonl", "result.json", "last*.pt", "cams/*.np[yz]"):
                for old in self.out.glob(pattern):
                    old.unlink()
        write_json(config, stored)

    def path(self, *parts: str) -> Path:
        """A path inside the run folder."""
        return self.out.joinpath(*parts)

    def log(self, **values: object) -> None:
        """Append one line to log.jsonl."""
        if not is_main():
            return
        with open(self.out / "log.jsonl", "a") as file:
            file.write(json.dumps(values, default=float) + "\n")

    def result(self, **figures: object) -> None:
        """What the stage achieved, its last word: result.json, and a line of the log."""
        self.log(label="result", **figures)
        write_json(figures, self.out / "result.json")

    def save(self, label: str, epoch: int, **stateful: object) -> None:
        """Checkpoint everything with a state_dict after `epoch` epochs of the training `label`."""
        states = {name: item.state_dict() for name, item in stateful.items()}
        save_atomic({"epoch": epoch, **states}, self.out / f"last_{label}.pt")

    def restore(self, label: str, **stateful: object) -> int:
        """Load the checkpoint of this label when resuming; the number of epochs already done."""
        path = self.out / f"last_{label}.pt"
        if not (self.resume and path.exists()):
            return 0
        checkpoint = load_weights(path)
        for name, item in stateful.items():
            item.load_state_dict(checkpoint[name])
        return checkpoint["epoch"]
