"""One function over all images of a data set in several processes; bad files are named, not traced back."""
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from ..progress import Progress
from ..errors import InputError


class ImageJobs:
    """Runs functions of image numbers in `workers` processes (0: in this one; on CUDA they start by spawn).

    The first bad image raises InputError; with `skip_bad` it is printed, kept in `failures` (number -> line)
    and left out of later runs too.
    """

    def __init__(self, names: Sequence[str], workers: int, device: torch.device, skip_bad: bool = False):
        self.names, self.workers, self.skip_bad = names, workers, skip_bad
        self.context = "spawn" if workers and device.type == "cuda" else None
        self.failures: dict[int, str] = {}

    def leave_out(self, failures: dict[int, str]) -> None:
        """Print these failures (number -> line) and leave their images out from now on."""
        self.failures |= failures
        for problem in failures.values():
            print(f"skipped: {problem}", file=sys.stderr)

    def run(self, label: str, work: Callable[[int], object], indices: Sequence[int]) -> Iterator[object]:
        """Yield the results of `work(index)` in order, under a progress line."""
        todo = [index for index in indices if index not in self.failures]
        loader = DataLoader(_Jobs(work, self.names), batch_size=None, sampler=todo, collate_fn=tuple,
                            num_workers=min(self.workers, len(todo)),
                            multiprocessing_context=self.context if todo else None)
        progress = Progress(label, len(todo))
        for index, result, problem in loader:
            if problem and not self.skip_bad:
                raise InputError(f"{problem} (--skip-bad goes on without)")
            progress.update(1)
            if problem:
                self.leave_out({index: problem})
            else:
                yield result
        progress.close()


@dataclass
class _Jobs(Dataset):
    """The jobs as a data set, whose loader brings the processes: items (image number, result, problem)."""
    work: Callable[[int], object]
    names: Sequence[str]

    def __getitem__(self, index: int) -> tuple[int, object, str | None]:
        try:
            return index, self.work(index), None
        except InputError as error:
            return index, None, str(error)
        except (ValueError, OSError) as error:  # raised where the image's name is not known
            return index, None, f"{self.names[index]}: {error}"
