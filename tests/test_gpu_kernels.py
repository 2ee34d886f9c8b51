"""The benchmark of GPU kernels: its pieces run here with interpreted kernels, so that they run on the day of a GPU."""

import importlib.util
from pathlib import Path

import pytest
import torch


@pytest.fixture
def script(monkeypatch):
    path = Path(__file__).parents[1] / "benchmarks" / "gpu_kernels.py"
    spec = importlib.util.spec_from_file_location("gpu_kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "copies", lambda size: 1)
    timed = []

    def run_each(calls):
        timed.extend(calls)
        for call in calls[:1]:
            call()
        return 2.0

    monkeypatch.setattr(module, "microseconds", run_each)
    return module


def test_the_estimate_names_every_size(script, capsys):
    script.estimate(4.3e12)
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[:2] for line in lines] == [
        [name, str(rows)] for name in script.AIM_PRESETS for rows in script.ROWS
    ]
    xl = next(line.split() for line in lines if line.startswith("aim-xl") and line.split()[1] == "128")
    assert float(xl[3]) == pytest.approx(128 * 48 * 3072 * 128 * 4 * 2 / 1e9, abs=0.01), "state, read and written"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@torch.inference_mode()
def test_every_piece_runs(script, make_aim, capsys, monkeypatch, tmp_path):
    model = make_aim(width=32, head_width=64, state_size=128, dtype=torch.bfloat16)
    with monkeypatch.context() as few:  # the second has more heads than the model
        few.setattr(script.itertools, "product", lambda *_: [(1, 16, 4), (2, 16, 4)])
        dual = script.time_mixing("dual", model, 2, 9)
    assert [piece["launch"]["heads"] for piece in dual] == [1]
    monkeypatch.setattr(script, "PRODUCTS", ((1024, 4),))
    found = dual + script.time_modulation(model, 2) + script.time_products(model, 2) + script.time_sampling(2)
    assert {piece["kernel"] for piece in found} == {
        "dual", "modulation", "in_proj", "out_proj", "head", "sampling", "sampling top_k", "sampling top_p",
    }  # fmt: skip
    assert all(piece["bytes"] > 0 for piece in found)
    rate = dual[0]["bytes"] / 4e-6  # so that the dual form, at 2 us, moves twice what the device can
    script.write(tmp_path / "found" / "pieces.json", {"gpu": "none"}, found, rate)
    assert script.json.loads((tmp_path / "found" / "pieces.json").read_text())["pieces"] == found
    script.print_best(found)
    assert "dual 2 9 2.00 us, 200 % of bandwidth" in capsys.readouterr().out
