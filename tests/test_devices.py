"""Whether bfloat16 pays on a device."""

import pytest
import torch

from aimamba.devices import bfloat16_pays


@pytest.fixture(autouse=True)
def forgotten():
    bfloat16_pays.cache_clear()
    yield
    bfloat16_pays.cache_clear()


@pytest.mark.parametrize(("float32", "bfloat16", "pays"), [(2.0, 1.0, True), (1.2, 1.0, False), (1.0, 10.0, False)])
def test_it_pays_where_its_products_are_clearly_faster(monkeypatch, float32, bfloat16, pays):
    """On a clock by which every round takes so long, but for one busy moment."""
    now, readings = 0.0, []
    for busy in (0.0, 0.0, 50.0, 0.0, 0.0):
        for seconds in (float32, bfloat16):
            readings += [now, now + seconds + busy]
            now += 100
    clock = iter(readings)
    monkeypatch.setattr("aimamba.devices.time.perf_counter", lambda: next(clock))
    assert bfloat16_pays(torch.device("cpu")) is pays
    assert not list(clock), "every round was timed"


def test_a_gpu_says_so_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert bfloat16_pays(torch.device("cuda"))
