"""Compiling a kernel: once a machine, with whatever C++ compiler is there."""

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
    """A kernel of this folder, compiled: from the cache folder or made now, which takes a few seconds.

    The compiler is ``$CXX``, else ``c++``, ``clang++`` or ``g++``, else the one in the package ``ziglang``.

    Args:
        sources: The file to compile, then those it includes.
        flags: What to compile for, e.g. ``("-march=x86-64-v3",)``; by default all that this machine can do.

    Returns:
        The library, or None where there is no compiler or it fails; the log says why.
    """
    if sys.platform == "win32":
        _log.info("no native kernel: it is not made for Windows")
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
    """Path of the library for this compiler, these flags, this processor and these sources."""
    folder = files("aimamba.ops")
    about = [*compiler, *_FLAGS, *target, _processor(), *(folder.joinpath(name).read_text() for name in sources)]
    key = hashlib.sha256("\0".join(about).encode()).hexdigest()[:24]
    path = cache_folder() / "native" / f"{key}.so"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Moved into place when it is whole, so that several processes may compile at once.
    with as_file(folder) as place, tempfile.TemporaryDirectory(dir=path.parent) as draft:
        made = Path(draft) / path.name
        command = [*compiler, *_FLAGS, *target, f"-I{place}", str(place / sources[0]), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        made.replace(path)
    return path


def _processor() -> str:
    """What the processor can do: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "") + platform.machine()


def _reason(error: Exception) -> str:
    told = getattr(error, "stderr", None)
    return str(told or error).strip().splitlines()[0]
