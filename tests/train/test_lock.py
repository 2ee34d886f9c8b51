import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_task import ToyTask, settings

from aimamba.errors import ConfigError
from aimamba.train.fit import fit
from aimamba.train.lock import LOCK_FILE, check_one_process, locked

HOLD = """
import os, sys, time
from pathlib import Path
from aimamba.train.lock import locked
with locked(Path(sys.argv[1])):
    if "fork" in sys.argv:
        receive, send = os.pipe()
        if os.fork() == 0:
            os.write(send, b"!")
            time.sleep(5)
            os._exit(0)
        os.read(receive, 1)  # the child runs
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """Start a process that holds the lock of ``tmp_path / "run"``."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "run"), *arguments], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_in_a_run_is_refused_by_the_pid_of_the_first(tmp_path, owner):
    first, out = owner(), tmp_path / "run"
    with pytest.raises(ConfigError) as caught:
        fit(ToyTask(), settings(), out)
    assert str(caught.value) == (
        f"{out} is being written to by another process (pid {first.pid}); wait for it or stop it, or give another --out"
    )
    assert [path.name for path in out.iterdir()] == [LOCK_FILE], "the first one's files are left alone"
    first.terminate()
    first.wait()
    fit(ToyTask(), settings(steps=1), out)
    assert LOCK_FILE not in os.listdir(out)


@pytest.mark.parametrize("arguments", [(), ("fork",)])
def test_a_dead_owner_holds_nothing(tmp_path, owner, arguments):
    first = owner(*arguments)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    started = time.monotonic()
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    assert time.monotonic() - started < 3, "a child of the dead owner holds it no longer either"


def test_the_lock_is_removed_with_the_folders_made_for_it(tmp_path):
    with pytest.raises(ConfigError, match="refused"), locked(tmp_path / "a" / "b"):
        raise ConfigError("refused")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_the_same_process_is_a_second_one_too(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(ConfigError, match=f"another process \\(pid {os.getpid()}\\)"),
        locked(tmp_path),
    ):
        pytest.fail("entered")
    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def unsupported(_handle):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("aimamba.train.lock._lock", unsupported)
    with locked(tmp_path):
        assert capsys.readouterr().err == f"{tmp_path}: the file system has no locks; start no second process there\n"
    assert list(Path(tmp_path).iterdir()) == []


def test_torchrun_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        ConfigError, match=r"^WORLD_SIZE is 4: a launcher .* one process on one device; start it without"
    ):
        fit(ToyTask(), settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for size in ("", "1", "none"):
        check_one_process({"WORLD_SIZE": size})


@pytest.mark.skipif(os.name == "nt", reason="links are made by administrators there")
def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".lock").symlink_to("precious")
    with pytest.raises(OSError, match=r"\.lock"), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "kept"
