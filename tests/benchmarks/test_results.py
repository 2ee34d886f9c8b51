"""The results file of the benchmarks and its report."""

from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.floors import Work
from benchmarks.measurement import Measurement, spread
from benchmarks.report import markdown, summary, table
from benchmarks.results import Results, add_shares

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MACHINE = {"cpu": "a", "threads": 1, "torch": "2", "date": "2026-01-02T03:04:05"}


def found(seconds):
    return {
        "seconds_per_picture": spread([seconds]),
        "milliseconds_per_token": spread([1000 * seconds / 16]),
        "estimated": False,
        "peak_bytes": 1 << 30,
        "work": asdict(Work(matrices=1000)),
    }


def test_results_are_added_to_and_replaced(tmp_path):
    measurement = Measurement(section="sampling", subject="aim", tokens=16)
    for seconds in (1.0, 2.0):
        results = Results.open(tmp_path, MACHINE)
        results.add(measurement, found(seconds))
        results.write(tmp_path)
    products = Measurement(section="ceilings", subject="products")
    results.add(Measurement(section="ceilings", subject="bandwidth"), {"rates": {"sum": 1e9}, "best": 1e9})
    results.add(products, {"rates": {"1 x 1 x 1": 1e10}, "best": 1e10})
    results.write(tmp_path)
    [sampling] = Results.open(tmp_path, MACHINE).of("sampling")
    assert sampling["seconds_per_picture"]["median"] == 2.0
    assert sampling["floor"]["milliseconds_per_token"] == pytest.approx(1000 * 4000 / 1e9)
    assert sampling["times_floor"] == pytest.approx(2.0 / 16 / (4000 / 1e9))
    assert "| AiM | float32 | 1 | 2.00 |" in markdown(results)


def test_a_ceiling_only_rises():
    results = Results(MACHINE)
    for best in (1.0, 3.0, 2.0):
        results.add(Measurement(section="ceilings", subject="bandwidth"), {"rates": {"sum": best}, "best": best})
    assert [each["best"] for each in results.measurements] == [3.0]


def test_narrow_numbers_can_be_widened():
    results = Results(MACHINE)
    results.add(Measurement(section="ceilings", subject="bandwidth"), {"rates": {"sum": 1.0}, "best": 1.0})
    for dtype, best in {"float32": 3.0, "bfloat16": 2.0, "int8": 5.0}.items():
        measurement = Measurement(section="ceilings", subject="products", dtype=dtype)
        results.add(measurement, {"rates": {"1 x 1 x 1": best}, "best": best})
    assert results.ceilings()["operations_per_second"] == {"float32": 3.0, "bfloat16": 3.0, "int8": 5.0}


def test_results_of_another_machine_are_not_changed(tmp_path):
    from aimamba import ConfigError

    Results(MACHINE).write(tmp_path)
    with pytest.raises(ConfigError, match=r"measured with threads 1, this run has 2; .* --out"):
        Results.open(tmp_path, MACHINE | {"threads": 2})
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="expected results of this command"):
        Results.open(tmp_path, MACHINE)


def test_a_table():
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_kernels_are_compared_with_a_copy():
    results = Results(MACHINE)
    pieces = [
        {"kernel": "dual", "rows": 16, "position": 32, "launch": {"heads": 8, "warps": 4}, "bytes": 4000},
        {"kernel": "dual", "rows": 16, "position": 32, "launch": "default", "bytes": 4000, "microseconds": 3.0},
        {"kernel": "dual", "rows": 16, "position": 128, "launch": "default", "bytes": 4000, "failed": "no memory"},
    ]
    pieces[0]["microseconds"] = 2.0
    results.add(Measurement(section="kernels", subject="dual", size="aim-l"), {"pieces": pieces})
    add_shares(results.of("kernels"))
    assert "share_of_bandwidth" not in pieces[0]
    assert "| dual | aim-l | 16 | 32 | 2.00 |  | heads 8, warps 4 |" in markdown(results)
    results.add(Measurement(section="kernels", subject="copy"), {"bytes_per_second": 4e9})
    add_shares(results.of("kernels"))
    assert pieces[0]["share_of_bandwidth"] == 0.5
    assert "share_of_bandwidth" not in pieces[2]
    text = markdown(results)
    assert "| copy |  |  |  |  | 0.004 TB/s |  |" in text
    assert "| dual | aim-l | 16 | 32 | 2.00 | 50% | heads 8, warps 4 |" in text
    assert summary({"pieces": pieces}) == "3 timings, 1 of them failed, the first with no memory"
    assert summary({"bytes_per_second": 4e12}) == "4 TB/s"


def test_a_scan_as_a_table():
    results = Results(MACHINE)
    taken = {"off": {"y": 1e-3, "x": 2e-3}, "forward_ms": [1.0, 2.0, 9.0], "both_ms": [3.0, 4.0, 5.0]}
    taken["peak_bytes"] = 1 << 20
    results.add(Measurement(section="scan", subject="triton", batch=16), taken)
    layouts = [
        {"kernel": "forward", "chunk": 64, "launch": {"warps": warps}, "ms": [milliseconds]}
        for warps, milliseconds in ((4, 2.0), (8, 1.5))
    ]
    layouts.append({"kernel": "forward", "chunk": 128, "launch": {"warps": 4}, "failed": "no memory"})
    results.add(Measurement(section="scan", subject="triton", variant="layouts"), {"layouts": layouts})
    text = markdown(results)
    assert "| triton | aim-b | float32 | 2.00 | 4.00 | 1.00 | 2.0e-03 |" in text
    assert "| triton, layouts | aim-b | float32 | forward | 64 | 1.50 | warps 8 |" in text
    assert "| 128 |" not in text
    assert summary(taken) == "forward 2.000 ms, with backward 4.000 ms, error 2.0e-03"


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/results.json")), ids=str)
def test_committed_results_load_and_make_their_report(folder):
    assert markdown(Results.load(folder)) == (folder / "results.md").read_text()
