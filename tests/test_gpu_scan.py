"""The benchmark of the training scan: it runs here with interpreted kernels, so that it runs on the day of a GPU."""

import importlib.util
import json

import pytest
import torch

from benchmarks import gpu_scan

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One call of few tokens on this device in place of every measurement."""
    monkeypatch.setattr(gpu_scan, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_scan, "BATCH", 1)
    monkeypatch.setattr(gpu_scan, "TOKENS", 20)
    monkeypatch.setattr(gpu_scan, "WIDTH", 16)
    monkeypatch.setattr(gpu_scan, "STATES", 16)
    monkeypatch.setattr(gpu_scan, "milliseconds", lambda call: [1.0 if call() else 0.0])
    monkeypatch.setattr(gpu_scan, "peak_bytes", lambda call: 1 << 20)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.03)])
def test_every_form_is_near_the_exact_one(dtype, bound, capsys):
    lines = {line["form"]: line for line in gpu_scan.time_forms("aim-b", 2, dtype)}
    assert {"chunked", "efficient", "triton"} <= set(lines)
    for line in lines.values():
        assert max(line["off"].values()) <= bound, line
        assert gpu_scan.describe(line).startswith(f"aim-b {dtype} {line['form']}: forward 1.000 ms")
    assert ("pip install aimamba[fla]" in capsys.readouterr().out) == ("fla" not in lines)


def test_layouts_run(monkeypatch):
    given = gpu_scan.itertools.product
    monkeypatch.setattr(gpu_scan.itertools, "product", lambda *axes: list(given(*axes))[:1])
    lines = list(gpu_scan.time_layouts("aim-b", 2))
    assert [line["kernel"] for line in lines] == ["forward", "backward, states", "backward, chunks"] * 3
    assert all(line["ms"] == [1.0] for line in lines)


def test_what_fails_is_told_and_the_rest_goes_on(monkeypatch, tmp_path, capsys):
    def broken(*_, **__):
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(gpu_scan, "forms", lambda: {"broken": broken, "chunked": gpu_scan.ssd_chunked})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    out = tmp_path / "found" / "scan.json"
    monkeypatch.setattr("sys.argv", ["gpu_scan", "--presets", "aim-b", "--dtypes", "float32", "--out", str(out)])
    gpu_scan.main()
    first, second = json.loads(out.read_text())["scans"]
    assert first["failed"] == "RuntimeError: no such instruction"
    assert second["form"] == "chunked"
    assert "aim-b float32 broken: RuntimeError: no such instruction\n" in capsys.readouterr().out
