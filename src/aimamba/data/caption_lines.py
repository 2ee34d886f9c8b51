"""Captions of many images in one block of bytes: a line of JSON for each image, in memory or mapped from a file.

A line is a list of captions, ``["a rocket", "rocket, flat design"]``, and empty for an image without any. A million
captions take their bytes and eight more each, and the file ``captions.jsonl`` is readable by people.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from aimamba.errors import DataError

CAPTIONS_FILE = "captions.jsonl"

LONGEST = 1 << 16
"""Most characters of a caption."""

_NEWLINE = ord("\n")


class CaptionLines:
    """The captions of n images.

    Attributes:
        lines: The bytes of the file.
    """

    def __init__(self, lines: UInt8[np.ndarray, "_"], *, where: str = "captions") -> None:
        """Find the lines.

        Args:
            lines: Lines of JSON, each with its end.
            where: What errors name.

        Raises:
            DataError: The last line has no end.
        """
        self.lines = lines
        self._where = where
        self._ends: Int64[np.ndarray, " n"] = np.flatnonzero(lines == _NEWLINE)
        if len(lines) and lines[-1] != _NEWLINE:
            raise DataError(f"{where}: cut short in its last line; encode again to replace it")

    @classmethod
    def of(cls, captions: Iterable[Iterable[str]]) -> "CaptionLines":
        """Pack the captions of images."""
        packed = bytearray()
        for each in captions:
            packed += json.dumps(list(each), separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
            packed.append(_NEWLINE)
        return cls(np.frombuffer(bytes(packed), np.uint8))

    @classmethod
    def open(cls, path: Path) -> "CaptionLines":
        """Map a file into memory.

        Raises:
            DataError: The file is missing or cut short.
        """
        try:
            empty = path.stat().st_size == 0
            lines = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
        except OSError as error:
            raise DataError(f"{path}: the captions cannot be read ({error.strerror}); encode again") from error
        return cls(lines, where=str(path))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._ends)

    def __getitem__(self, index: int) -> tuple[str, ...]:
        """Return the captions of an image.

        Raises:
            DataError: The line is no list of texts.
            IndexError: ``index`` is out of range.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"captions {index} of {len(self)}")
        start = int(self._ends[index - 1]) + 1 if index else 0
        try:
            found = json.loads(self.lines[start : int(self._ends[index])].tobytes())
            if not isinstance(found, list):
                raise TypeError
            return tuple(caption + "" for caption in found)
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{self._where}: line {index + 1} is no list of captions; encode again") from error

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the path of a mapped file, not its content."""
        mapped = isinstance(self.lines, np.memmap)
        return {**self.__dict__, "lines": Path(str(self.lines.filename)) if mapped else self.lines}  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the file again."""
        self.__dict__.update(state)
        if isinstance(self.lines, Path):
            self.lines = np.memmap(self.lines, np.uint8, "r")
