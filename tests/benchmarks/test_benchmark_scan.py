"""The benchmark of the training scan, with interpreted kernels, so that it works when a GPU is there."""

import importlib.util
from dataclasses import replace

import pytest

from benchmarks import scan
from benchmarks.measurement import LAYOUTS, Measurement
from benchmarks.plan import SCAN_MIXERS
from benchmarks.scan import MIXERS
from benchmarks.worker import measure

TINY = Measurement(section="scan", subject="chunked", tokens=20, quick=True)

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(autouse=True)
def once(monkeypatch):
    """One call in place of every measurement."""
    monkeypatch.setattr(scan, "milliseconds", lambda call, **_: [1.0 if call() else 0.0])


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.03)])
@pytest.mark.parametrize("backend", ["chunked", "plain", pytest.param("triton", marks=needs_triton)])
def test_every_backend_is_near_the_exact_one(backend, dtype, bound):
    found = measure(replace(TINY, subject=backend, dtype=dtype))
    assert max(found["off"].values()) <= bound, found
    assert found["off"].keys() == {"y", "x", "dt", "A", "B", "C"}
    assert found["forward_ms"] == found["both_ms"] == [1.0]
    assert found["peak_bytes"] >= 0
    assert found["heads"] == 4


@pytest.mark.parametrize("mixer", SCAN_MIXERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_recurrences_of_other_mixers(monkeypatch, mixer, dtype):
    assert MIXERS.keys() == set(SCAN_MIXERS)
    form = scan.MIXERS[mixer].exact
    monkeypatch.setitem(scan.MIXERS, mixer, scan.MIXERS[mixer]._replace(open_fla=lambda: form))
    for backend in ("plain", "fla"):
        found = measure(replace(TINY, subject=backend, variant=mixer, dtype=dtype))
        assert found["off"].keys() == {"y", *scan.MIXERS[mixer].inputs}
        assert max(found["off"].values()) <= (1e-6 if dtype == "float32" else 0.05), found
        assert found["heads"] == 4


def test_a_missing_package_is_reported():
    found = measure(replace(TINY, subject="fla"))
    assert "pip install aimamba[fla]" in found["unavailable"] if not importlib.util.find_spec("fla") else "off" in found


@needs_triton
def test_layouts_run(monkeypatch):
    given = scan.itertools.product
    monkeypatch.setattr(scan.itertools, "product", lambda *axes: list(given(*axes))[:1])
    lines = measure(replace(TINY, subject="triton", variant=LAYOUTS, dtype="bfloat16"))["layouts"]
    assert [line["kernel"] for line in lines] == ["forward", "backward, states", "backward, chunks"] * 3
    assert all(line["ms"] == [1.0] for line in lines)


def test_chunk_lengths_run_elsewhere():
    lines = measure(replace(TINY, subject="plain", variant=LAYOUTS))["layouts"]
    assert lines == [{"kernel": "forward and backward", "chunk": chunk, "ms": [1.0]} for chunk in (16, 32, 64, 128)]


def test_what_fails_is_reported_and_the_rest_continues():
    def broken():
        raise RuntimeError("no such instruction\nand more")

    layouts = iter([({"chunk": 16}, broken), ({"chunk": 32}, lambda: True)])
    assert list(scan.time_layouts(layouts, lambda call: [1.0 if call() else 0.0])) == [
        {"chunk": 16, "failed": "RuntimeError: no such instruction"},
        {"chunk": 32, "ms": [1.0]},
    ]
