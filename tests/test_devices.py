"""Devices and dtypes by name, and whether bfloat16 pays on a device."""

import pytest
import torch

from aimamba.devices import bfloat16_pays, resolve_device, resolve_dtype, without_autocast
from aimamba.errors import ConfigError


@pytest.fixture(autouse=True)
def no_cache():
    bfloat16_pays.cache_clear()
    yield
    bfloat16_pays.cache_clear()


@pytest.mark.parametrize(("float32", "bfloat16", "pays"), [(2.0, 1.0, True), (1.2, 1.0, False), (1.0, 10.0, False)])
def test_it_pays_where_its_products_are_much_faster(monkeypatch, float32, bfloat16, pays):
    """On a clock that makes every round take this long, except for one busy moment."""
    now, readings = 0.0, []
    for busy in (0.0, 0.0, 50.0, 0.0, 0.0):
        for seconds in (float32, bfloat16):
            readings += [now, now + seconds + busy]
            now += 100
    clock = iter(readings)
    monkeypatch.setattr("aimamba.devices.time.perf_counter", lambda: next(clock))
    assert bfloat16_pays(torch.device("cpu")) is pays
    assert not list(clock), "every round was timed"


def test_pytorch_knows_it_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert bfloat16_pays(torch.device("cuda"))


def test_devices_by_name(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps", "gpu", "", "CPU "):
        with pytest.raises(ConfigError, match=r"this machine has: auto, cpu$") as caught:
            resolve_device(name)
        assert repr(name) in str(caught.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"auto, cpu, cuda:0, cuda:1$"):
        resolve_device("cuda:2")


def test_dtypes_by_name():
    assert resolve_dtype("bfloat16") == torch.bfloat16
    assert resolve_dtype("float32") == torch.float32
    for name in ("int8", "bf16", "", "Float32"):
        with pytest.raises(ConfigError, match="expected one of float32, bfloat16, float16, float64"):
            resolve_dtype(name)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_autocast_can_be_switched_off_on_every_device(device):
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
        with without_autocast(torch.device(device)):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
