"""Long work holds no more memory, files or threads at its end: a short version of ``python -m benchmarks.soak``."""

import mmap
import os
import sys

import pytest

from benchmarks.soak import MORE, Reading, growth, sample, train

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")


@linux
@pytest.mark.parametrize("stage", ["generator", "tokenizer"])
def test_training_stays_flat(stage):
    assert growth(train(stage, 40)) is None


@linux
def test_sampling_stays_flat():
    assert growth(sample(60)) is None


@linux
def test_what_leaks_is_found():
    kept = []

    def leak_memory(_done):
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # from the system: the heap may hold freed memory
        kept.append(mmap.mmap(-1, 1 << 19, private))
        kept[-1].write(bytes(1 << 19))

    assert growth(sample(60, watch=leak_memory)).startswith("memory has grown from ")
    kept.clear()
    files = []
    try:
        found = growth(sample(20, watch=lambda _done: files.append(os.open(os.devnull, os.O_RDONLY))))
    finally:
        for file in files:
            os.close(file)
    assert found.startswith("handles have grown from ")


def readings(*memory, handles=(5,), threads=(2,)):
    def last(values, index):
        return values[min(index, len(values) - 1)]

    return [Reading(i, last(memory, i), last(handles, i), last(threads, i)) for i in range(50)]


@pytest.mark.parametrize(
    ("some", "expected"),
    [
        (readings(100), None),
        (readings(*[0] * 9, MORE * 5), None),  # the first fifth may grow
        (readings(*[0] * 45, MORE), None),
        (readings(*[0] * 25, MORE + 1), "memory has grown from 0.0 to 8.0 MiB"),
        (readings(0, handles=(*[5] * 39, 6)), "handles have grown from 5 to 6"),
        (readings(0, handles=(*[5] * 12, 9, 5)), None),  # a file that was open for a while
        (readings(0, threads=(*[2] * 30, 3)), "threads have grown from 2 to 3"),
    ],
)
def test_what_counts_as_growth(some, expected):
    assert growth(some) == expected


def test_too_few_readings():
    with pytest.raises(ValueError, match="at least five readings are needed, got 4"):
        growth(readings(1)[:4])
