"""The settings of malloc."""

from types import SimpleNamespace

import pytest

from aimamba.train import memory


@pytest.mark.parametrize(("platform", "calls"), [("linux", {-1, -3}), ("darwin", set())])
def test_both_thresholds_are_raised_on_linux_alone(monkeypatch, platform, calls):
    options = {}
    monkeypatch.setattr(memory.sys, "platform", platform)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=options.__setitem__))
    memory.keep_freed_memory()
    assert set(options) == calls
    assert all(2**29 < value < 2**31 for value in options.values())


def test_a_malloc_without_settings_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace())
    memory.keep_freed_memory()
