"""Files that are either whole or absent, and the folder for those that can be made again."""

import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object], *, draft: str | None = None) -> None:
    """Let ``write`` fill a draft beside ``path``, which then takes its place.

    A reader sees the old file or the new one.

    Args:
        path: Where the file should be.
        write: Fills the file whose path it is given.
        draft: Name of the draft. By default it is unique, so that several processes may write at once; with a name of
            its own, a process that is killed again and again leaves no more than one.
    """
    place = path.with_name(draft or f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(place)
        with place.open("r+b") as file:
            os.fsync(file.fileno())
        place.replace(path)
    finally:
        place.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where derived data is kept: ``$AIMAMBA_CACHE``, or ``aimamba`` in the cache folder of the platform."""
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
