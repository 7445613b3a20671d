"""Jobs over images: results in order from several processes, bad images named once, the same threads."""
import os

import numpy as np
import pytest
import torch

from clipwsss.datasets.jobs import CHUNK, ImageJobs
from clipwsss.errors import InputError

NAMES = [f"image{number}" for number in range(70)]


def described(index: int) -> tuple[int, int, int, np.ndarray]:
    return index, os.getpid(), torch.get_num_threads(), np.full((2, 2), index)


def odd(index: int) -> int:
    if index in (33, 40):
        raise InputError(f"file{index}: unreadable") if index == 33 else ValueError("no such value")
    return index


def jobs(workers: int, skip_bad: bool = False) -> ImageJobs:
    return ImageJobs(NAMES, workers, skip_bad)


@pytest.mark.smoke
def test_results_come_in_order_from_this_process_and_the_workers():
    before = torch.get_num_threads()
    for workers, count in ((0, 70), (1, 70), (2, 70), (2, 1), (3, 2)):
        results = list(jobs(workers).run("jobs", described, range(count)))
        assert [result[0] for result in results] == list(range(count)), (workers, count)
        assert all((result[3] == result[0]).all() for result in results)
        processes = [result[1] for result in results]
        assert len(set(processes)) == min(workers + 1, count), (workers, count)
        if workers and count == len(NAMES):
            assert len(NAMES) / (workers + 1) == pytest.approx(processes.count(os.getpid()), abs=CHUNK)
            assert {result[2] for result in results} == {1}
        assert torch.get_num_threads() == before
    assert not list(jobs(2).run("jobs", described, []))


def test_totals_add_up_field_by_field():
    assert jobs(2).total("sum", lambda index: (1, index, np.eye(2) * index), range(5))[:2] == [5, 10]
    assert np.array_equal(jobs(0).total("sum", lambda index: (np.eye(2),), range(3))[0], 3 * np.eye(2))
    assert jobs(0).total("sum", described, []) is None


def test_bad_images_stop_or_are_left_out_from_then_on(capsys):
    for workers in (0, 2):
        with pytest.raises(InputError, match="file33: unreadable .*--skip-bad") as caught:
            list(jobs(workers).run("jobs", odd, range(70)))
        assert "\n" not in str(caught.value)
        skipping = jobs(workers, skip_bad=True)
        expected = [index for index in range(70) if index not in (33, 40)]
        assert list(skipping.run("jobs", odd, range(70))) == expected, workers
        assert skipping.failures == {33: "file33: unreadable", 40: "image40: no such value"}
        assert "skipped: file33: unreadable\nskipped: image40: no such value\n" in capsys.readouterr().err
        assert len(list(skipping.run("jobs", described, range(70)))) == 68


def test_what_is_missing_is_counted(capsys):
    absent = {3: "image3: absent", 5: "image5: absent"}
    with pytest.raises(InputError, match="image3: absent .and 1 more of 70 images; --skip-bad leaves"):
        jobs(0).leave_out(absent)
    skipping = jobs(0, skip_bad=True)
    skipping.leave_out(absent)
    assert list(skipping.run("jobs", odd, range(7))) == [0, 1, 2, 4, 6] and not jobs(0).leave_out({})
    assert "skipped: image5: absent" in capsys.readouterr().err
