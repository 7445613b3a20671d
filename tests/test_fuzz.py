"""A short pass of the fuzzer over every reader (tests/benchmarks/fuzz_readers.py makes the long one)."""
import sys
from pathlib import Path

from clipwsss.errors import InputError

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import fuzz_readers


def test_every_reader_gives_a_result_or_our_error():
    known = fuzz_readers.readers()
    assert len(known) == 23
    told = {name: fuzz_readers.fuzz(reader, 20, seed=1) for name, reader in known.items()}
    assert {name: faults for name, (_, faults) in told.items() if faults} == {}
    assert sum(fine for fine, _ in told.values()) > 20  # some inputs are still good


def raising(error):
    def read(folder):
        raise error
    return read


def test_the_fuzzer_sees_faults():
    for read, fault in ((raising(TypeError("no list")), "TypeError: no list"),
                        (raising(InputError("two\nlines")), "several lines"), (raising(fuzz_readers.Hang()), "Hang"),
                        (raising(InputError("a.txt: one line")), None), (lambda folder: 1, None)):
        _, faults = fuzz_readers.fuzz(fuzz_readers.Reader("a.txt", [b"abc"], read), 3)
        assert len(faults) == (3 if fault else 0) and all(fault in line for line in faults), fault
