"""The benchmark of the kernels of a decoding step, with interpreted kernels, so that it works when a GPU is there."""

import importlib.util
from contextlib import nullcontext

import pytest
import torch

from benchmarks import kernels
from benchmarks.measurement import LAYOUTS, Measurement
from benchmarks.worker import measure


@pytest.fixture
def timed(monkeypatch):
    """Run one call in place of every measurement."""
    monkeypatch.setattr(kernels, "copies", lambda size: 1)

    def run_first(calls):
        calls[0]()
        return 2.0

    monkeypatch.setattr(kernels, "microseconds", run_first)


def step(make_aim, num_tokens=256, **settings):
    model = make_aim(width=32, head_width=64, state_size=128, num_tokens=num_tokens, dtype=torch.bfloat16)
    return kernels.Step(model=model, rows=2, device=torch.device("cpu"), **settings)


@pytest.mark.parametrize(("variant", "layouts"), [("", False), (LAYOUTS, True)])
def test_a_measurement_is_of_its_size_and_batch(variant, layouts, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    steps = []
    monkeypatch.setitem(kernels.PIECES, "dual", lambda step: steps.append(step) or ["timed"])
    asked = Measurement(section="kernels", subject="dual", variant=variant, device="cuda", batch=8, size="aim-l")
    assert measure(asked)["pieces"] == ["timed"]
    [found] = steps
    assert (found.rows, found.inner, found.heads, found.layouts) == (16, 2048, 32, layouts)
    assert next(found.model.parameters()).dtype == torch.bfloat16
    assert next(found.model.parameters()).is_meta


def test_kernels_need_a_cuda_device():
    found = measure(Measurement(section="kernels", subject="dual", dtype="bfloat16", quick=True, tokens=16))
    assert found == {"skipped": "the kernels of a decoding step need a CUDA device"}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@torch.inference_mode()
def test_every_kernel_runs(timed, make_aim):
    found = [piece for make in kernels.PIECES.values() for piece in make(step(make_aim))]
    assert {piece["kernel"] for piece in found} == {
        "state", "dual", "dual, int8", "folded", "modulation", "in_proj", "out_proj", "head",
        "sampling", "sampling top_k", "sampling top_p",
    }  # fmt: skip
    assert all(piece["microseconds"] == 2.0 for piece in found), [piece for piece in found if "failed" in piece]
    assert all(piece["bytes"] > 0 for piece in found)
    assert [piece["position"] for piece in found if piece["kernel"] == "dual"] == [32, 128, 255]
    assert [piece["position"] for piece in found if piece["kernel"] == "folded"] == [288 + 32, 288 + 63]
    few = kernels.time_mixing(step(make_aim, num_tokens=9), "dual", kernels.POSITIONS)
    assert [piece["position"] for piece in few] == [8]  # the last one of the image: its memory ends there
    assert {piece["launch"] for piece in found} == {"default", "torch", "kernel", "with norm default"}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@torch.inference_mode()
def test_every_layout_runs(timed, make_aim, monkeypatch):
    every = step(make_aim, layouts=True)
    with monkeypatch.context() as few:  # the second has more heads than the model
        few.setattr(kernels, "DUAL_LAYOUTS", dict.fromkeys((False, True), ((1, 16, 4, 1), (2, 16, 4, 1))))
        dual = kernels.time_mixing(every, "dual", [9])
    assert [piece["launch"]["heads"] for piece in dual] == [1]
    state = kernels.time_mixing(every, "state", [9])
    assert [piece["launch"] for piece in state] == [
        {"heads": heads, "tokens": 1, "warps": warps, "stages": 1} for heads in (1, 2) for warps in (4, 8)
    ]
    monkeypatch.setattr(kernels, "PRODUCTS", ((1024, 4),))
    products = kernels.time_products(every)
    assert [piece["launch"] for piece in products if piece["kernel"] == "in_proj"] == [
        "torch", "(1024, 4)", "with norm (1024, 4)",
    ]  # fmt: skip
    modulation = kernels.time_modulation(every)
    assert [piece["launch"] for piece in modulation] == [{"warps": warps} for warps in (2, 4, 8, 16)]
    for piece in dual + state + products + modulation:
        assert piece["microseconds"] == 2.0, piece


def test_what_fails_is_reported_and_the_rest_continues(make_aim, monkeypatch):
    def broken(calls):
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(kernels, "microseconds", broken)
    found = kernels.time_sampling(step(make_aim)) if importlib.util.find_spec("triton") else []
    assert {piece["failed"] for piece in found} <= {"RuntimeError: no such instruction"}
    assert not [piece for piece in found if "microseconds" in piece]
