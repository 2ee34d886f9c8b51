"""Where a command writes: a folder that is checked before the work begins, and file names made of class names."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from aimamba.errors import ConfigError

_LONGEST_NAME = 60  # characters: with a seed and a suffix below the 255 bytes of common file systems


def output_folder(path: Path) -> Path:
    """Check that a folder is there or can be made; nothing is made yet.

    Returns:
        The path, a leading ``~`` resolved.

    Raises:
        ConfigError: A file is in the way, or writing is not permitted.
    """
    path = path.expanduser()
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise ConfigError(f"--out {path}: {nearest} is a file, but a folder is needed; give another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {path}: writing in {nearest} is not permitted; give another --out")
    return path


def file_name(text: str) -> str:
    """Turn any text into part of a file name; what has no letter or digit becomes empty."""
    return re.sub(r"[^\w.-]+", "-", text.strip()).strip("-.")[:_LONGEST_NAME]


def file_names(names: Sequence[str]) -> list[str]:
    """A file name for each class, no two alike in any case: the class's number tells apart those that would be."""
    stems = [file_name(name) or "class" for name in names]
    count = Counter(stem.lower() for stem in stems)
    return [stem if count[stem.lower()] == 1 else f"{stem}-{label}" for label, stem in enumerate(stems)]
