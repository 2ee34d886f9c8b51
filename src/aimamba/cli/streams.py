"""Standard output and error of a command, also where they are closed, full, or have lost their reader."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


@contextmanager
def usable_streams() -> Iterator[None]:
    """Let a command print whatever happens to its streams.

    A stream that is closed, as by ``>&-``, takes everything. What standard error cannot take, such as progress on a
    closed terminal or a full disk, is dropped: the work goes on. A character that a stream's encoding lacks becomes an
    escape.
    """
    out, error = sys.stdout, sys.stderr
    for stream in (out, error):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = out or nowhere
        sys.stderr = cast(TextIO, _Dropping(error or nowhere))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, error
            if error is not None:
                _settle(error)


def to_nowhere(stream: Any) -> None:
    """Keep Python from failing again when it flushes a stream at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _settle(stream: Any) -> None:
    try:
        stream.flush()
    except OSError:
        to_nowhere(stream)


class _Dropping:
    """A stream for text that drops what it cannot write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
