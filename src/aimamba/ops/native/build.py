"""Compiling C++ kernels on first use, with any C++ compiler found on the machine.

A library in the cache folder is loaded only if its content has the SHA-256 in its name and nobody else could have
written it: loading runs its code, and a truncated one kills the process.
"""

import atexit
import contextlib
import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from aimamba.files import cache_folder

_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
_FOR_THIS_MACHINE = (("-march=native",), ("-mcpu=native",), ())
_SECONDS = 180
_ABANDONED = 3600  # seconds

_log = logging.getLogger(__name__)


@cache
def load_library(sources: tuple[str, ...], flags: tuple[str, ...] | None = None) -> ctypes.CDLL | None:
    """Load a compiled kernel from the cache folder, compiling it first if needed, which takes a few seconds.

    The compiler is ``$CXX`` if set, else ``c++``, ``clang++`` or ``g++``, else the one in the package ``ziglang``.

    Args:
        sources: The file to compile, then those it includes, relative to ``aimamba/ops``.
        flags: Flags for the processor, e.g. ``("-march=x86-64-v3",)``; by default those for this machine.

    Returns:
        The library, or None if there is no compiler or it fails; the reason is logged. Repeated calls return the same.
    """
    if sys.platform == "win32":
        _log.info("no native kernel: Windows is not supported")
        return None
    compilers = _compilers()
    if not compilers:
        _log.info("no native kernel: no C++ compiler found; 'pip install ziglang' brings one")
    for compiler in compilers:
        for target in _FOR_THIS_MACHINE if flags is None else (flags,):
            try:
                return ctypes.CDLL(str(_compiled(sources, compiler, target, _library_folder())))
            except (OSError, subprocess.SubprocessError) as error:
                _log.info("no native kernel with %s %s: %s", shlex.join(compiler), shlex.join(target), _reason(error))
    return None


def _compilers() -> list[Sequence[str]]:
    chosen = os.environ.get("CXX", "").strip()
    try:
        words = shlex.split(chosen)
    except ValueError as error:  # a quotation mark without its partner
        _log.warning("CXX=%s cannot be read (%s): taken as the path of a compiler", chosen, error)
        words = [chosen]
    if words and words[0] and shutil.which(chosen):  # the path of a compiler, with spaces in it
        words = [chosen]
    named = [words] if any(words) else [["c++"], ["clang++"], ["g++"]]
    found: list[Sequence[str]] = [command for command in named if command[0] and shutil.which(command[0])]
    if not any(words) and importlib.util.find_spec("ziglang") is not None:
        found.append((sys.executable, "-m", "ziglang", "c++"))
    return found


@cache
def _library_folder() -> Path:
    """Return the cache folder for libraries, or a private temporary one if others could write into that."""
    folder = cache_folder() / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = _open_to_others(folder)
    except OSError as error:
        reason = f"it cannot be made: {error.strerror}"
    if reason is None:
        _sweep(folder)
        return folder
    _log.warning("kernels are compiled for this process alone, as %s cannot be trusted: %s", folder, reason)
    private = tempfile.mkdtemp(prefix="aimamba-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return Path(private)


def _open_to_others(folder: Path) -> str | None:
    """Return why users other than this one could place a file in ``folder``, or None if they cannot.

    A folder above it that others may write to would let them replace it, unless it is sticky, as ``/tmp`` is.
    """
    real = folder.resolve(strict=True)
    status = real.stat()
    if status.st_uid != os.getuid():
        return "it belongs to another user; set AIMAMBA_CACHE to a folder of yours"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it; 'rm -r {real}' and the next run makes it anew"
    for place in real.parents:
        status = place.stat()
        shared = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != os.getgid())
        if shared and not status.st_mode & stat.S_ISVTX:
            return f"others may write to {place}; set AIMAMBA_CACHE to a folder of yours"
    return None


def _sweep(folder: Path) -> None:
    """Remove what compilations that were killed have left behind; those under way are younger."""
    for path in folder.glob("tmp*"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > _ABANDONED:
                shutil.rmtree(path)


def _compiled(sources: tuple[str, ...], compiler: Sequence[str], target: tuple[str, ...], folder: Path) -> Path:
    """Return the path of the library for this compiler, these flags, this processor and these sources."""
    code = files("aimamba.ops")
    about = [*compiler, *_FLAGS, *target, _processor(), *(code.joinpath(name).read_text() for name in sources)]
    key = hashlib.sha256("\0".join(about).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    for path in sorted(folder.glob(f"{key}-*.so")):
        if path.is_file() and not path.is_symlink() and path.name == _name(key, path):
            return path
        _log.warning("%s is damaged: it is compiled again", path)
        path.unlink()
    # Moved into place when complete, so that several processes can compile at the same time.
    with as_file(code) as root, tempfile.TemporaryDirectory(dir=folder) as scratch:
        library = Path(scratch) / "library.so"
        command = [*compiler, *_FLAGS, *target, f"-I{root}", str(root / sources[0]), "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
        with library.open("r+b") as file:
            os.fsync(file.fileno())
        path = folder / _name(key, library)
        library.replace(path)
        _sync(folder)
    return path


def _name(key: str, library: Path) -> str:
    """Return the name of a library: what it was compiled from, then its content."""
    with library.open("rb") as file:
        return f"{key}-{hashlib.file_digest(file, 'sha256').hexdigest()}.so"


def _sync(folder: Path) -> None:
    """Write the entries of ``folder`` to the disk."""
    entries = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entries)
    finally:
        os.close(entries)


def _processor() -> str:
    """Return the features of the processor: different machines may share a cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "") + platform.machine()


def _reason(error: Exception) -> str:
    output = getattr(error, "stderr", None)
    return next(iter(str(output or error).strip().splitlines()), type(error).__name__)
