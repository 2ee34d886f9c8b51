"""Atomic writing of files, and the cache folder."""

import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object], *, draft: str | None = None) -> None:
    """Write a file so that a reader sees the old content or the new, never a part of it.

    The content goes into a draft beside ``path``, which then replaces it.

    Args:
        path: The file to write.
        write: Writes the content to the path it is called with.
        draft: Name of the draft. The default is unique, so several processes can write at once. With a fixed name, a
            process that is killed repeatedly leaves at most one draft behind.
    """
    temporary = path.with_name(draft or f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(temporary)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return the folder for derived data: ``$AIMAMBA_CACHE``, or ``aimamba`` in the platform's cache folder."""
    chosen = os.environ.get("AIMAMBA_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "aimamba"
