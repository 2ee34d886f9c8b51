"""Disks without room, for tests."""

import contextlib
import ctypes
import errno
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_NEW_MOUNTS, _PRIVATE = 0x00020000, 0x44000  # unshare(2); mount(2), with all below


def in_child(work: Callable[[], object]) -> None:
    """Call ``work`` in a forked process, which is this one but for what it changes; fail where it fails."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reader)
        text = ""
        try:
            work()
        except BaseException:
            text = traceback.format_exc()
        with contextlib.suppress(OSError):
            os.write(writer, text.encode()[-60_000:])
        os._exit(bool(text))
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if text:
        pytest.fail(text)
    assert status == 0, f"the child ended with {status}"


def mount_small_disk(folder: Path, size: int = 1 << 20) -> bool:
    """Mount a file system of some bytes on a folder, for this process alone; return whether that is permitted."""
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_NEW_MOUNTS) or library.mount(b"none", b"/", None, _PRIVATE, None):
        return False
    return library.mount(b"none", bytes(folder), b"tmpfs", 0, f"size={size}".encode()) == 0


@contextlib.contextmanager
def no_room(folder: Path, left: int = 0) -> Iterator[None]:
    """Fill a small disk in the block, but for some bytes."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(filler, max(0, filler.stat().st_size - left))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def no_file_may_grow(_folder: Path) -> Iterator[None]:
    """Forbid this process to write to files in the block: a disk without room for those who may not mount one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FullAt:
    """Lets the disk be full at one moment: file number ``number``, counted from 1, cannot be brought to it.

    The others are not waited for, which would take most of the time of a test.

    Attributes:
        count: Files so far.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.count = 0

        def fsync(handle: int) -> None:
            if not os.path.isdir(f"/dev/fd/{handle}"):
                self.count += 1
                if self.count == number:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fsync)
