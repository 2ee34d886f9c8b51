"""Compiling on first use, and running without a compiler."""

import logging

import pytest

from aimamba.ops.native.build import load_library

SOURCES = ("conv/native/winograd.cpp", "native/threads.h", "native/simd.h")


@pytest.fixture
def load(tmp_path, monkeypatch, caplog):
    """Return ``load_library`` without its memory, with an empty cache folder."""
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path))
    caplog.set_level(logging.INFO, "aimamba")
    return load_library.__wrapped__


def test_without_a_compiler(load, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert load(SOURCES) is None
    assert "no C++ compiler found" in caplog.text


def test_a_compiler_that_fails(load, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("CXX", "false")
    assert load(SOURCES) is None
    assert "no native kernel with false" in caplog.text
    assert [path.name for path in tmp_path.rglob("*")] == ["native"], "nothing half-made is left"


def test_compiled_once(load, monkeypatch, tmp_path):
    if load(SOURCES) is None:
        pytest.skip("no C++ compiler here")
    [made] = tmp_path.rglob("*.so")
    time = made.stat().st_mtime_ns
    assert load(SOURCES) is not None
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")] == [time]
