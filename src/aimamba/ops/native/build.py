"""Compiling C++ kernels on first use, with any C++ compiler found on the machine."""

import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from aimamba.files import cache_folder

_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
_FOR_THIS_MACHINE = (("-march=native",), ("-mcpu=native",), ())
_SECONDS = 180

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
                return ctypes.CDLL(str(_compiled(sources, compiler, target)))
            except (OSError, subprocess.SubprocessError) as error:
                _log.info("no native kernel with %s %s: %s", shlex.join(compiler), shlex.join(target), _reason(error))
    return None


def _compilers() -> list[Sequence[str]]:
    chosen = os.environ.get("CXX")
    named = [chosen] if chosen else ["c++", "clang++", "g++"]
    found: list[Sequence[str]] = [shlex.split(name) for name in named if shutil.which(shlex.split(name)[0])]
    if not chosen and importlib.util.find_spec("ziglang") is not None:
        found.append((sys.executable, "-m", "ziglang", "c++"))
    return found


def _compiled(sources: tuple[str, ...], compiler: Sequence[str], target: tuple[str, ...]) -> Path:
    """Return the path of the library for this compiler, these flags, this processor and these sources."""
    folder = files("aimamba.ops")
    about = [*compiler, *_FLAGS, *target, _processor(), *(folder.joinpath(name).read_text() for name in sources)]
    key = hashlib.sha256("\0".join(about).encode()).hexdigest()[:24]
    path = cache_folder() / "native" / f"{key}.so"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Moved into place when complete, so that several processes can compile at the same time.
    with as_file(folder) as root, tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        library = Path(scratch) / path.name
        command = [*compiler, *_FLAGS, *target, f"-I{root}", str(root / sources[0]), "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        library.replace(path)
    return path


def _processor() -> str:
    """Return the features of the processor: different machines may share a cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "") + platform.machine()


def _reason(error: Exception) -> str:
    output = getattr(error, "stderr", None)
    return str(output or error).strip().splitlines()[0]
