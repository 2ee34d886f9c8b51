"""Compiling on first use, and running without a compiler."""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from aimamba.ops.native import build
from aimamba.ops.native.build import load_library

SOURCES = ("conv/native/winograd.cpp", "native/threads.h", "native/simd.h")


@pytest.fixture
def load(tmp_path, monkeypatch, caplog):
    """Return ``load_library`` without its memory, with an empty cache folder."""
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path))
    caplog.set_level(logging.INFO, "aimamba")
    build._library_folder.cache_clear()
    yield load_library.__wrapped__
    build._library_folder.cache_clear()


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


@pytest.fixture
def fake(load, monkeypatch, tmp_path):
    """Return ``load`` with a compiler that writes 8 KiB in no time, and the list of what was loaded."""
    compiler = tmp_path / "quick compiler"
    compiler.write_text(f"#!{sys.executable}\nimport sys\nopen(sys.argv[-1], 'wb').write(bytes(range(256)) * 32)\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    loaded = []

    class Opened(ctypes.CDLL):
        def __init__(self, path):
            self.place = path
            with open(path, "rb") as file:
                loaded.append(file.read())

    monkeypatch.setattr(ctypes, "CDLL", Opened)
    return SimpleNamespace(load=load, loaded=loaded, whole=bytes(range(256)) * 32, folder=tmp_path / "native")


def flipped(content):
    return content[:5000] + bytes([content[5000] ^ 4]) + content[5001:]


DAMAGE = [lambda content, length=length: content[:length] for length in (0, 1, 63, 64, 4095, 4096, 4097, 8191)]


@pytest.mark.parametrize("damage", [*DAMAGE, flipped])
def test_a_damaged_library_is_never_loaded(fake, damage, caplog):
    fake.load(SOURCES)
    [made] = fake.folder.iterdir()
    made.write_bytes(damage(fake.whole))
    assert fake.load(SOURCES) is not None
    assert fake.loaded == [fake.whole, fake.whole]
    assert "is damaged: it is compiled again" in caplog.text
    assert list(fake.folder.iterdir()) == [made]


def test_a_real_library_is_compiled_again(load, tmp_path):
    if load(SOURCES) is None:
        pytest.skip("no C++ compiler here")
    [made] = (tmp_path / "native").iterdir()
    content = made.read_bytes()
    made.unlink()  # the loaded one stays as it is
    made.write_bytes(content[: len(content) // 2])
    assert load(SOURCES) is not None
    assert len(next((tmp_path / "native").iterdir()).read_bytes()) == len(content)


def test_the_name_has_the_sum_of_the_content(fake):
    fake.load(SOURCES)
    [made] = fake.folder.iterdir()
    assert made.stem.partition("-")[2] == hashlib.sha256(fake.whole).hexdigest()
    assert fake.folder.stat().st_mode & 0o777 == 0o700


def test_a_planted_library_is_not_loaded(fake):
    """A library as earlier versions named it, and one that is a link."""
    fake.load(SOURCES)
    [made] = fake.folder.iterdir()
    key = made.name.partition("-")[0]
    (fake.folder / f"{key}.so").write_bytes(b"planted")
    other = fake.folder / "elsewhere"
    made.rename(other)
    made.symlink_to(other)
    fake.load(SOURCES)
    assert fake.loaded == [fake.whole] * 2
    assert not made.is_symlink()


def test_a_folder_open_to_others_is_not_used(fake, caplog):
    fake.folder.mkdir()
    fake.folder.chmod(0o777)
    path = fake.load(SOURCES).place
    assert not path.startswith(str(fake.folder))
    assert list(fake.folder.iterdir()) == []
    assert "cannot be trusted: others may write to it" in caplog.text
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    shutil.rmtree(os.path.dirname(path))


def test_a_folder_below_one_that_is_open_to_others_is_not_used(fake, caplog, tmp_path):
    tmp_path.chmod(0o777)
    path = fake.load(SOURCES).place
    assert not path.startswith(str(tmp_path))
    assert f"others may write to {tmp_path}" in caplog.text
    tmp_path.chmod(0o1777)  # sticky: entries can be replaced by their owner alone
    build._library_folder.cache_clear()
    assert fake.load(SOURCES).place.startswith(str(fake.folder))


def test_a_folder_of_another_user_is_not_used(fake, caplog, monkeypatch):
    fake.folder.mkdir(mode=0o755)
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    assert not fake.load(SOURCES).place.startswith(str(fake.folder))
    assert "belongs to another user" in caplog.text


def test_a_cache_folder_that_cannot_be_made(fake, caplog):
    fake.folder.write_text("a file in its place")
    assert fake.load(SOURCES) is not None
    assert "cannot be trusted" in caplog.text


def test_remains_of_killed_compilations_are_swept(fake):
    for name, age in (("tmpold", 3700), ("tmpnew", 60)):
        (fake.folder / name).mkdir(parents=True, mode=0o700)
        os.utime(fake.folder / name, (time.time() - age,) * 2)
    fake.folder.chmod(0o700)
    fake.load(SOURCES)
    assert [path.name for path in fake.folder.iterdir() if path.is_dir()] == ["tmpnew"]


@pytest.mark.parametrize("chosen", ["", "  ", "''", '""'])
def test_a_blank_cxx_is_none(chosen, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    usual = build._compilers()
    monkeypatch.setenv("CXX", chosen)
    assert build._compilers() == usual


def test_a_quoted_cxx(monkeypatch, tmp_path):
    compiler = tmp_path / "my compiler"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{compiler}' -O1")
    assert build._compilers() == [[str(compiler), "-O1"]]
    monkeypatch.setenv("CXX", str(compiler))
    assert build._compilers() == [[str(compiler)]]
    monkeypatch.setenv("CXX", "'c++")
    assert build._compilers() == []


def test_several_processes_at_once(fake, tmp_path):
    program = f"""
import ctypes
from aimamba.ops.native.build import load_library
class Opened(ctypes.CDLL):
    def __init__(self, path):
        assert open(path, "rb").read() == bytes(range(256)) * 32
ctypes.CDLL = Opened
assert load_library({SOURCES!r}) is not None
"""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(list(fake.folder.iterdir())) == 1
