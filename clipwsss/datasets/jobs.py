"""One function over all images of a data set in several processes; bad files are named, not traced back."""
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from ..distributed import broadcast, gather, shard
from ..errors import InputError
from ..progress import Progress

CHUNK = 16  # images that a process takes at most at a time: sending results costs little then
ROUNDS = 16  # fewer, where a process would not get so many chunks: all end at about the same time


class ImageJobs:
    """Runs functions of image numbers in this process and `workers` others (on CUDA they start by spawn).

    Of torchrun's processes each has its share of the images. The first bad image raises InputError; with
    `skip_bad` it is printed, kept in `failures` (number -> line) and left out of later runs too.
    """

    def __init__(self, names: Sequence[str], workers: int = 0, skip_bad: bool = False, device: str = "cpu"):
        self.names, self.workers, self.skip_bad = names, workers, skip_bad
        self.context = "spawn" if device == "cuda" else None
        self.failures: dict[int, str] = {}

    def leave_out(self, failures: dict[int, str]) -> None:
        """Print these failures (number -> line), leave their images out; InputError without `skip_bad`."""
        if failures and not self.skip_bad:
            more = f"and {len(failures) - 1} more of {len(self.names)} images; " if len(failures) > 1 else ""
            raise InputError(f"{next(iter(failures.values()))} ({more}--skip-bad goes on without)")
        self.failures |= failures
        for problem in failures.values():
            print(f"skipped: {problem}", file=sys.stderr)

    def run(self, label: str, work: Callable[[int], object], indices: Sequence[int]) -> Iterator[object]:
        """Yield the results of `work(index)` in order, under a progress line: those of this process's share.

        At the end, which all processes have to reach, every file is written and all know all failures.
        """
        todo = shard(broadcast([index for index in indices if index not in self.failures]))
        progress, threads = Progress(label, len(todo)), torch.get_num_threads()
        helpers = min(self.workers, max(len(todo) - 1, 0))
        if helpers:
            torch.set_num_threads(1)  # as in the helpers: all images come out alike
        try:
            for index, result, problem in self._outcomes(work, todo, helpers):
                progress.update(1)
                if problem:
                    self.leave_out({index: problem})
                else:
                    yield result
        finally:
            torch.set_num_threads(threads)
        progress.close()
        for failures in gather(self.failures):
            self.leave_out({index: failures[index] for index in failures.keys() - self.failures.keys()})

    def total(self, label: str, work: Callable[[int], tuple], indices: Sequence[int]) -> list | None:
        """The sum, field by field, of the tuples `work(index)` of all processes; None without any."""
        def added(parts: Iterable[Sequence | None]) -> list | None:
            total = None
            for part in parts:
                if part is not None:
                    total = [a + b for a, b in zip(total, part)] if total else list(part)
            return total

        return added(gather(added(self.run(label, work, indices))))

    def _outcomes(self, work: Callable[[int], object], todo: list[int], helpers: int) -> Iterator[tuple]:
        """`_Jobs`' items in order; of helpers + 1 chunks of images this process takes one itself."""
        jobs, size = _Jobs(work, self.names), min(CHUNK, 1 + len(todo) // (ROUNDS * (helpers + 1)))
        chunks = [todo[start:start + size] for start in range(0, len(todo), size)]
        theirs = [chunk for number, chunk in enumerate(chunks) if number % (helpers + 1)]
        arriving = iter(DataLoader(jobs, batch_sampler=theirs, num_workers=helpers, collate_fn=list,
                                   prefetch_factor=4 if helpers else None,
                                   multiprocessing_context=self.context if helpers else None))
        for number, chunk in enumerate(chunks):
            yield from next(arriving) if number % (helpers + 1) else map(jobs.__getitem__, chunk)


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
