"""Codes of samples on disk, batch by batch, so that an interrupted command goes on where it was.

An image is decoded from its codes in a moment, so codes are all that has to be kept: two hundred times less than
pixels.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from aimamba.config import first_difference
from aimamba.documents import read_json
from aimamba.errors import ConfigError
from aimamba.files import write_atomically

_SETTINGS = "settings.json"
_PART = re.compile(r"codes-(\d{10})-([0-9a-f]{16})\.npy")
_LARGEST_PART = 1 << 30  # bytes


class KeptCodes:
    """A folder of codes, all sampled with the same settings; image i is always the same.

    Attributes:
        folder: Where they are; made with the first part.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Compare the settings with those of the codes that are there already; nothing is written yet.

        Args:
            folder: The folder.
            settings: Everything that the codes depend on, as JSON values.

        Raises:
            ConfigError: The folder holds codes of other settings, or its settings cannot be read.
        """
        self.folder = folder
        self._settings = json.loads(json.dumps(settings))
        path = folder / _SETTINGS
        if not path.exists():
            return
        remedy = f"remove {folder} to begin again"
        try:
            before = read_json(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read ({error}); {remedy}") from error
        if not isinstance(before, dict):
            raise ConfigError(f"{path}: expected a JSON object, got {type(before).__name__}; {remedy}")
        if (difference := first_difference(before, self._settings)) is not None:
            raise ConfigError(f"{folder} holds unfinished samples with {difference}; set it back, or {remedy}")

    def load(self, count: int, length: int, vocabulary: int) -> Int32[np.ndarray, "n l"]:
        """Return the codes of the first ``count`` samples; those that are not there, or damaged, are -1.

        Args:
            count: Number of samples, n.
            length: Codes of a sample, l.
            vocabulary: All codes are below it.
        """
        codes = np.full((count, length), -1, np.int32)
        for path in sorted(self.folder.glob("codes-*.npy")):
            part = _read(path, length, vocabulary)
            if part is not None:
                first = int(path.name.split("-")[1])
                part = part[: max(0, count - first)]
                codes[first : first + len(part)] = part
        return codes

    def add(self, first: int, codes: Int32[np.ndarray, "b l"]) -> None:
        """Write the codes of consecutive samples.

        Args:
            first: Number of the first one.
            codes: The codes.

        Raises:
            OSError: They cannot be written.
        """
        path = self.folder / _SETTINGS
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self._settings, indent=2) + "\n"
            write_atomically(path, lambda draft: draft.write_text(text, encoding="utf-8"))
        buffer = io.BytesIO()
        np.save(buffer, codes)
        content = buffer.getvalue()
        name = f"codes-{first:010d}-{hashlib.sha256(content).hexdigest()[:16]}.npy"
        write_atomically(self.folder / name, lambda draft: draft.write_bytes(content))

    def remove(self) -> None:
        """Remove the codes, and the folder if nothing else is in it."""
        with suppress(OSError):
            for path in self.folder.glob("codes-*.npy"):
                path.unlink()
            (self.folder / _SETTINGS).unlink(missing_ok=True)
            self.folder.rmdir()


def _read(path: Path, length: int, vocabulary: int) -> np.ndarray | None:
    """Return the codes of a part, or None if it is not the one that was written."""
    named = _PART.fullmatch(path.name)
    try:
        if named is None or not path.is_file() or path.stat().st_size > _LARGEST_PART:
            return None
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:16] != named[2]:
            return None
        codes = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception:  # whatever is wrong with the file, its samples are generated again
        return None
    fits = codes.ndim == 2 and codes.shape[1] == length and codes.dtype == np.int32
    return codes if fits and ((codes >= 0) & (codes < vocabulary)).all() else None
