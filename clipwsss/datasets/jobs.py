"""One function for all images of a data set, in several processes; a bad image is named in one line."""
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from ..distributed import broadcast, gather, shard
from ..errors import InputError
from ..progress import Progress

CHUNK = 16  # the most images that a process is given at a time; sending back their results costs little
ROUNDS = 16  # the fewest chunks for each process, so that all processes end at about the same time


class ImageJobs:
    """Runs functions of image numbers in this process and in `workers` others.

    device: where the functions compute; with `cuda` the other processes are started by spawn. Each process of
    torchrun works on its part of the images. The first bad image raises InputError. With `skip_bad` it is
    printed, kept in `failures` (image number -> line) and left out of later runs too.
    """

    def __init__(self, names: Sequence[str], workers: int = 0, skip_bad: bool = False, device: str = "cpu"):
        self.names = names
        self.workers = workers
        self.skip_bad = skip_bad
        self.context = "spawn" if device == "cuda" else None
        self.failures: dict[int, str] = {}

    def leave_out(self, failures: dict[int, str]) -> None:
        """Print these failures (number -> line) and leave their images out; InputError without `skip_bad`."""
        if failures and not self.skip_bad:
            more = f"and {len(failures) - 1} more of {len(self.names)} images; " if len(failures) > 1 else ""
            raise InputError(f"{next(iter(failures.values()))} ({more}--skip-bad leaves bad images out)")
        self.failures |= failures
        for problem in failures.values():
            print(f"skipped: {problem}", file=sys.stderr)

    def run(self, label: str, work: Callable[[int], object], indices: Sequence[int]) -> Iterator[object]:
        """Yield the results of `work(index)` for this process's part of the images, in order.

        A progress line shows `label`. Every process has to read to the end. Then all processes have written
        their files, and each knows the failures of all.
        """
        todo = shard(broadcast([index for index in indices if index not in self.failures]))
        helpers = min(self.workers, max(len(todo) - 1, 0))
        progress = Progress(label, len(todo))
        threads = torch.get_num_threads()
        if helpers:
            torch.set_num_threads(1)  # as in the helpers: results do not depend on the process
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
        """The sum, field by field, of the tuples `work(index)` of all processes; None if there is none."""
        return add_up(gather(add_up(self.run(label, work, indices))))

    def _outcomes(self, work: Callable[[int], object], todo: list[int], helpers: int) -> Iterator[tuple]:
        """(image number, result, problem) of each image in order, as `Attempts` gives them.

        The images go in chunks to this process and its helpers in turn. Of chunks 0 to 6 and two helpers,
        this process works on 0, 3 and 6; a loader's two workers make 1, 2, 4 and 5 in the meantime.
        """
        attempts = Attempts(work, self.names)
        turns = helpers + 1
        size = min(CHUNK, 1 + len(todo) // (ROUNDS * turns))
        chunks = [todo[start:start + size] for start in range(0, len(todo), size)]
        helpers_chunks = [chunk for number, chunk in enumerate(chunks) if number % turns != 0]
        arriving = iter(DataLoader(attempts, batch_sampler=helpers_chunks, num_workers=helpers,
                                   collate_fn=list, prefetch_factor=4 if helpers else None,
                                   multiprocessing_context=self.context if helpers else None))
        for number, chunk in enumerate(chunks):
            if number % turns == 0:
                for index in chunk:
                    yield attempts[index]
            else:
                yield from next(arriving)


class Attempts(Dataset):
    """`work` on each image as a data set, so that a loader's processes can do it.

    Its items are (image number, result, None), or (image number, None, problem) for a bad image.
    """

    def __init__(self, work: Callable[[int], object], names: Sequence[str]):
        self.work = work
        self.names = names

    def __getitem__(self, index: int) -> tuple[int, object, str | None]:
        try:
            return index, self.work(index), None
        except InputError as error:
            return index, None, str(error)
        except (ValueError, OSError) as error:  # raised where the name of the image is not known
            return index, None, f"{self.names[index]}: {error}"


def add_up(parts: Iterable[Sequence | None]) -> list | None:
    """The sum, field by field, of those parts that are not None; None if all are."""
    total = None
    for part in parts:
        if part is None:
            continue
        if total is None:
            total = list(part)
        else:
            total = [sum_so_far + value for sum_so_far, value in zip(total, part)]
    return total
