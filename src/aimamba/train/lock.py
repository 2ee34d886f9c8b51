"""Keep a second process out of a folder that one process is writing to."""

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from aimamba.config import check
from aimamba.errors import ConfigError

LOCK_FILE = ".lock"

_FAR = 2**30  # msvcrt locks bytes, and locked ones cannot be read: take one behind the text
# A link that someone planted is not followed: what it leads to would be overwritten.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_HELD: set[int] = set()  # descriptors of the locks of this process


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``, which is created if it does not exist.

    The operating system holds the lock for the open file, not for its existence: it ends with the process, also after
    kill -9, and a file that was left behind is taken over. On leaving, the file is removed, and so are folders that
    were created here and are still empty. Where the file system has no locks, this warns and goes on.

    Raises:
        ConfigError: Another process holds the lock.
    """
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    handle = _open(folder)
    try:
        yield
    finally:
        if os.name == "nt":  # an open file cannot be removed there
            _close(handle)
        with contextlib.suppress(OSError):
            (folder / LOCK_FILE).unlink()
        _close(handle)
        with contextlib.suppress(OSError):
            for parent in created:
                parent.rmdir()


def check_one_process(environment: Mapping[str, str] = os.environ) -> None:
    """Check that no launcher such as torchrun has started several processes of one job.

    Raises:
        ConfigError: ``WORLD_SIZE`` is above 1.
    """
    processes = environment.get("WORLD_SIZE", "")
    check(
        not processes.isdecimal() or int(processes) <= 1,
        f"WORLD_SIZE is {processes}: a launcher such as torchrun started {processes} processes, but training runs in "
        "one process on one device; start it without the launcher (choose the GPU with --device cuda:1), or unset "
        "WORLD_SIZE",
    )


def _open(folder: Path) -> int:
    path = folder / LOCK_FILE
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, _FLAGS, 0o644)
        except FileNotFoundError:  # another process has just removed the empty folder
            continue
        _HELD.add(handle)
        try:
            _lock(handle)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                print(f"{folder}: the file system has no locks; start no second process there", file=sys.stderr)
                return handle
            owner = _owner(handle)
            _close(handle)
            raise ConfigError(
                f"{folder} is being written to by another process ({owner}); wait for it or stop it, "
                "or give another --out"
            ) from error
        if _is_current(handle, path):
            with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()}\n".encode())
            return handle
        _close(handle)  # its owner removed the file between opening and locking


def _lock(handle: int) -> None:
    if os.name == "nt":
        msvcrt = importlib.import_module("msvcrt")
        os.lseek(handle, _FAR, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)
    else:
        fcntl = importlib.import_module("fcntl")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _owner(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    pid = os.read(handle, 32).decode("ascii", "replace").strip()
    return f"pid {pid}" if pid.isdecimal() else "its pid is not known yet"


def _is_current(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _close(handle: int) -> None:
    if handle in _HELD:
        _HELD.discard(handle)
        os.close(handle)


def _forget() -> None:
    """Close the locks in a forked child, such as a loader's worker, so that they end with the parent."""
    for handle in list(_HELD):
        _close(handle)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
