"""Captions of a folder of images: ``name.txt`` beside ``name.jpg``, or rows of ``metadata.jsonl`` or ``metadata.csv``.

Metadata have the columns ``file_name`` and ``text`` (or ``caption``), as in the library ``datasets``; they lie in the
folder or in any below it, and names are relative to theirs. A text file has a caption on each line. In JSON lines a
list of texts, and in both kinds several rows of one file, are several captions.
"""

import csv
import json
import os
import posixpath
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from aimamba.data.caption_lines import LONGEST, CaptionLines
from aimamba.data.files import require_file
from aimamba.data.images import Images
from aimamba.errors import DataError, counted, printable

METADATA = ("metadata.jsonl", "metadata.csv")
SUFFIX = ".txt"

_FILE, _TEXTS = "file_name", ("text", "caption")
_LONGEST_LINE = 1 << 22  # bytes of a row
_READERS = 8
_SHOWN = 100  # characters of a name in a message


class CaptionWarning(UserWarning):
    """Some captions are missing, or belong to no image."""


@runtime_checkable
class CaptionSource(Protocol):
    """Where the captions of images are."""

    def __bool__(self) -> bool:
        """Return whether there are captions."""

    def read(self, names: Sequence[str]) -> CaptionLines:
        """Return the captions of some images."""


class FileImages(Images):
    """Images in files that may have captions, which are read when the first one is asked for.

    Attributes:
        names: Path of every image in its folder, with ``/`` between folders.
    """

    names: Sequence[str]
    _caption_source: CaptionSource
    _caption_lines: CaptionLines | None = None

    @property
    def captioned(self) -> bool:  # type: ignore[override]
        """Whether there are captions."""
        return bool(self._caption_source)

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of one image; of one that was found broken those of the image that replaces it.

        Raises:
            DataError: The captions cannot be read.
            IndexError: ``index`` is out of range.
        """
        self._check(index)
        if not self.captioned:
            return ()
        if self._caption_lines is None:
            self._caption_lines = self._caption_source.read(self.names)
        return self._caption_lines[self.stand_in(index)]

    def stand_in(self, index: int) -> int:
        """Return which image has replaced one that was found broken; an intact one stands for itself."""
        return index


class CaptionFiles:
    """Where the captions of a folder are; they are read when they are asked for.

    Attributes:
        metadata: Files of metadata, relative to the folder.
        beside: Images with a text file beside them.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        """Look for captions.

        Args:
            root: The folder.
            names: All images below it, relative, with ``/`` between folders.

        Raises:
            DataError: A folder cannot be listed.
        """
        self._root = root
        folders = {""}
        for folder in {posixpath.dirname(name) for name in names}:
            while folder not in folders:
                folders.add(folder)
                folder = posixpath.dirname(folder)  # noqa: PLW2901 - up to the root
        here = {folder: _files_in(root / folder) for folder in sorted(folders)}
        self.metadata = [
            posixpath.join(folder, name) for folder, files in here.items() for name in METADATA if name in files
        ]
        self.beside = [name for name in names if posixpath.basename(_text_of(name)) in here[posixpath.dirname(name)]]
        self._names = names if self.metadata else ()

    def __bool__(self) -> bool:
        """Return whether there are captions."""
        return bool(self.metadata or self.beside)

    def read(self, names: Sequence[str]) -> CaptionLines:
        """Return the captions of some of the images.

        Images without a caption, and rows that name no image, are counted in a ``CaptionWarning``.

        Raises:
            DataError: There are captions of two kinds; a file cannot be read, is not UTF-8 or too long; a row has no
                name or text, or a name that leads out of the folder; or no row names an image.
        """
        self._check_one_kind()
        if self.beside:
            beside = set(self.beside)
            with ThreadPoolExecutor(_READERS) as pool:
                found = pool.map(lambda name: self._text_beside(name) if name in beside else (), names)
                return pack_captions(self._root, names, found)
        rows = self._rows()
        return pack_captions(self._root, names, (rows.get(name, ()) for name in names))

    def _check_one_kind(self) -> None:
        kinds = [*self.metadata, *(_text_of(name) for name in self.beside[:1])]
        here = Counter(posixpath.dirname(path) for path in self.metadata)
        if (self.metadata and self.beside) or max(here.values(), default=0) > 1:
            raise DataError(
                f"{self._root}: there are captions in {kinds[0]} and in {kinds[-1]}, and which of them count is not "
                "clear: keep one kind"
            )

    def _text_beside(self, name: str) -> tuple[str, ...]:
        path = self._root / _text_of(name)
        try:
            require_file(path)
            if path.stat().st_size > 4 * LONGEST:
                raise DataError(f"{path}: {path.stat().st_size:,} bytes are no caption; shorten or remove the file")
            return tuple(decode_captions(path.read_bytes(), path))
        except OSError as error:
            raise DataError(f"{path}: the caption cannot be read ({error.strerror or error})") from error

    def _rows(self) -> dict[str, list[str]]:
        """Return the captions in all metadata by image."""
        known = set(self._names)
        captions: dict[str, list[str]] = {}
        strays, twice = Counter[str](), Counter[str]()
        for path in self.metadata:
            for where, row in _read_rows(self._root / path):
                name = _named_file(row, where, posixpath.dirname(path))
                if name not in known and not os.path.isfile(self._root / name):  # what is no image here is no stray
                    strays[_shown(name)] += 1
                    continue
                own = captions.setdefault(name, [])
                for text in _texts(row, where):
                    if text in own:
                        twice[_shown(name)] += 1
                    else:
                        own.append(text)
        if strays and not captions:
            raise DataError(
                f"{self._root / self.metadata[0]}: none of its rows names an image: {_FILE} is relative to the folder "
                f"of the metadata, and there is no {next(iter(strays))}"
            )
        for rows, problem in ((strays, "name a file that does not exist"), (twice, "repeat a caption")):
            if rows:
                _warn(
                    f"{self._root}: {counted(rows.total(), 'row')} of metadata {problem} (such as {next(iter(rows))}); "
                    "they are left out"
                )
        return captions


def decode_captions(content: bytes, where: object) -> Iterator[str]:
    """Yield the captions in a text file: its lines, without white space at both ends and without empty ones.

    Raises:
        DataError: It is not UTF-8, or a caption is too long.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: the caption is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    for line in text.splitlines():
        if caption := line.strip():
            yield check_length(caption, where)


def pack_captions(root: Path, names: Sequence[str], captions: Iterable[Sequence[str]]) -> CaptionLines:
    """Return the captions of images, and warn of images without any."""
    missing: list[str] = []

    def watched() -> Iterator[Sequence[str]]:
        for name, own in zip(names, captions, strict=True):
            if not own:
                missing.append(name)
            yield own

    lines = CaptionLines.of(watched())
    if missing:
        _warn(
            f"{root}: {counted(len(missing), 'image')} of {len(names):,} without a caption (such as {missing[0]}); "
            "they teach what images without a text look like"
        )
    return lines


def check_length(caption: str, where: object) -> str:
    """Return a caption.

    Raises:
        DataError: It is too long to be one.
    """
    if len(caption) > LONGEST:
        raise DataError(f"{where}: a caption of {len(caption):,} characters, more than {LONGEST:,}; shorten it")
    return caption


def _shown(text: str) -> str:
    """Return names out of a file for a message."""
    return printable(text[:_SHOWN])


def _warn(text: str) -> None:
    warnings.warn(CaptionWarning(text), stacklevel=4)


def _text_of(name: str) -> str:
    return f"{posixpath.splitext(name)[0]}{SUFFIX}"


def _files_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.name.endswith(SUFFIX) or entry.name in METADATA}
    except OSError as error:
        raise DataError(f"{folder}: cannot list the folder ({error.strerror})") from error


def _named_file(row: Mapping[str, Any], where: str, folder: str) -> str:
    """Return the image that a row names, relative to the root.

    Raises:
        DataError: It names none, or one outside of the folder.
    """
    name = row.get(_FILE)
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: expected the name of an image under {_FILE!r}, got {name!r}; give every row one")
    if "\0" in name or posixpath.isabs(name) or "\\" in name or ".." in name.split("/"):
        raise DataError(
            f"{where}: {name[:_SHOWN]!r} leads out of the folder; name images relative to it, with / between folders"
        )
    return posixpath.normpath(posixpath.join(folder, name))


def _texts(row: Mapping[str, Any], where: str) -> list[str]:
    """Return the captions of a row; empty ones are none."""
    column = next((name for name in _TEXTS if row.get(name) is not None), None)
    if column is None and not any(name in row for name in _TEXTS):
        columns = _shown(", ".join(row))
        raise DataError(f"{where}: expected a caption under {' or '.join(map(repr, _TEXTS))}, got {columns}")
    texts = row[column] if column else []
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: expected a text or a list of texts under {column!r}, got {str(texts)[:60]!r}")
    return [check_length(text.strip(), where) for text in texts if text.strip()]


def _read_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a file of metadata, each with its place.

    Raises:
        DataError: It cannot be read, or a row is not valid.
    """
    lines = _Lines(path)
    try:
        require_file(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in _csv_rows(lines.of(file), path) if path.suffix == ".csv" else map(json.loads, lines.of(file)):
                where = f"{path}: line {lines.number}"
                if not isinstance(row, dict):
                    raise DataError(f"{where}: expected an object, as in {{{_FILE!r}: ...}}")
                if None in row:
                    raise DataError(f"{where} has more fields than columns; quote captions with commas")
                yield where, row
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason}, after line {lines.number}); save it as UTF-8"
        ) from error
    except (ValueError, RecursionError, csv.Error) as error:
        kind = "CSV" if path.suffix == ".csv" else "JSON"
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: line {lines.number} is not valid {kind} ({reason})") from error
    except OSError as error:
        raise DataError(f"{path}: the captions cannot be read ({error.strerror or error})") from error


def _csv_rows(lines: Iterable[str], path: Path) -> Iterator[Mapping[Any, Any]]:
    table = csv.DictReader(lines, strict=True)
    if _FILE not in (table.fieldnames or ()):
        columns = _shown(", ".join(table.fieldnames or ()))
        raise DataError(f"{path}: expected the columns {_FILE} and {_TEXTS[0]}, got {columns or 'none'}")
    yield from table


class _Lines:
    """The lines of a file, counted; one without an end in sight is refused before it fills the memory."""

    def __init__(self, path: Path) -> None:
        self._path, self.number = path, 0

    def of(self, file: IO[str]) -> Iterator[str]:
        while line := file.readline(_LONGEST_LINE):
            self.number += 1
            if len(line) == _LONGEST_LINE and not line.endswith("\n"):
                raise DataError(
                    f"{self._path}: line {self.number} has more than {_LONGEST_LINE:,} characters; give each image one "
                    "of its own"
                )
            if line.strip() or self._path.suffix == ".csv":  # in a quoted caption of CSV it counts
                yield line
