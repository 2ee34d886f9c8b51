"""Vectors of captions, kept on disk: a frozen sentence encoder computes each caption once.

They are in ``captions/`` of the cache folder, in a folder for an encoder and a length. A file there holds the vectors
of up to 32,768 captions, without padding, and their index. It is written whole, never changed, and mapped into memory,
so neither a million captions nor several processes need more of it than they look at.

A file: the float16 vectors of all captions, one behind the other; zeros up to a multiple of 64 bytes; the index, sorted
by key: for every caption the first 8 bytes of its SHA-256 (its key), the next 8, where its vectors end, and their
CRC-32; then ``_FOOTER``.

Shape letters: B captions, T most word pieces of one, F features.
"""

import hashlib
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.errors import DataError, is_unicode
from aimamba.files import cache_folder, write_atomically
from aimamba.networks.sentence import SentenceEncoder, check_texts

_SUFFIX = ".vectors"
_FOOTER = struct.Struct("<8sQQQ32s")
"""Magic bytes, number of captions and of vectors, F, and the SHA-256 of the index and of these numbers."""

_MAGIC = b"aimvecs1"
_INDEX: tuple[np.dtype[Any], ...] = (np.dtype("<u8"), np.dtype("<u8"), np.dtype("<u4"), np.dtype("<u4"))
_ALIGNED = 64
_PER_FILE = 1 << 15  # captions; with 32 word pieces of 384 features 800 MB at most, and usually a quarter
_AT_ONCE = 256  # captions that are encoded together
_LOOKED_UP = 1 << 12  # captions that are looked for together
_ABANDONED = 86_400.0  # seconds without a change after which a draft is a killed process's

_Key = tuple[int, int]


class _File(NamedTuple):
    """A file, mapped: its index and vectors."""

    path: Path
    keys: np.ndarray
    checks: np.ndarray
    ends: np.ndarray
    sums: np.ndarray
    vectors: np.ndarray

    def row(self, number: int) -> np.ndarray | None:
        """Return the vectors of a caption; None if they are damaged."""
        start = int(self.ends[number - 1]) if number else 0
        found = self.vectors[start : int(self.ends[number])]
        return found if zlib.crc32(found.tobytes()) == int(self.sums[number]) else None


class CaptionVectors:
    """What ``SentenceEncoder.encode`` returns for captions, to the bit, from disk where it has been computed before.

    Several processes may use one cache at once: ``prepare`` in each of them writes what is not there yet. The ranks of
    a job can each prepare a part of the captions, and then find all of them.

    Attributes:
        encoder: Computes what is not there.
        length: Most word pieces of a caption (T).
        folder: Where the files are.
    """

    def __init__(self, encoder: SentenceEncoder, length: int) -> None:
        """Open the cache of an encoder and a length; what it holds already is found.

        Raises:
            ConfigError: The length is out of range.
        """
        encoder.check_length(length)
        self.encoder, self.length = encoder, length
        self.folder = cache_folder() / "captions" / f"{encoder.fingerprint[:24]}-{length}"
        self._files: dict[str, _File] = {}
        self._damaged: set[str] = set()
        self._scan()

    def prepare(self, captions: Iterable[str], *, progress: Callable[[int], object] | None = None) -> None:
        """Compute and keep what is not there yet; an interrupted call loses at most the last 32,768 captions.

        Args:
            captions: In any order, also repeated; they are read once, in blocks.
            progress: Called with the number of captions that are done since the last call.

        Raises:
            ConfigError: ``captions`` is one text.
            DataError: A caption is not text, or the disk is full or cannot be written.
            CheckpointError: The encoder computes NaN or numbers beyond float16.
        """
        check_texts(captions)
        done = progress or (lambda count: None)
        self._scan()
        waiting: dict[_Key, str] = {}
        for block in _blocks(captions):
            texts = {key: text for text in block if (key := _key(text)) not in waiting}
            missing = self._missing(texts)
            done(len(block) - len(missing))
            waiting |= missing
            if len(waiting) >= _PER_FILE:
                self._write(waiting, done)
                waiting = {}
        self._write(waiting, done)

    def take(self, texts: Sequence[str]) -> Float[Tensor, "b t f"]:
        """Return the vectors of captions; those that are not kept, or damaged, are computed and not kept.

        Returns:
            Float32 on the CPU, zero behind the end of a caption; see ``SentenceEncoder.encode``.

        Raises:
            ConfigError, DataError, CheckpointError: See there.
        """
        check_texts(texts)
        result = np.zeros((len(texts), self.length, self.encoder.width), np.float32)
        lost = []
        for number, place in enumerate(self._find([_key(text) for text in texts])):
            vectors = None if place is None else self._row(*place)
            if vectors is None:
                lost.append(number)
            else:
                result[number, : len(vectors)] = vectors
        found = torch.from_numpy(result)
        if lost:
            found[lost] = self.encoder.encode([texts[number] for number in lost], self.length).cpu()
        return found

    def __contains__(self, text: str) -> bool:
        """Return whether the vectors of a caption are kept."""
        return self._find([_key(text)])[0] is not None

    def _row(self, name: str, number: int) -> np.ndarray | None:
        """Return the vectors of a caption; None if they are damaged, and then the file is removed for the next run."""
        file = self._files[name]
        vectors = file.row(number)
        if vectors is None and name not in self._damaged:
            self._damaged.add(name)  # the file stays mapped: what else it holds has sums of its own
            _remove(file.path)
        return vectors

    def _find(self, keys: Sequence[_Key]) -> list[tuple[str, int] | None]:
        """Return file and number of captions, None for those that are not kept."""
        wanted = np.array(keys, np.uint64).reshape(-1, 2)
        places: list[tuple[str, int] | None] = [None] * len(wanted)
        for name, file in self._files.items():
            rows = np.searchsorted(file.keys, wanted[:, 0]).clip(max=len(file.keys) - 1)
            for number in np.flatnonzero((file.keys[rows] == wanted[:, 0]) & (file.checks[rows] == wanted[:, 1])):
                places[number] = name, int(rows[number])
        return places

    def _missing(self, texts: Mapping[_Key, str]) -> dict[_Key, str]:
        places = self._find(list(texts))
        return {key: text for (key, text), place in zip(texts.items(), places, strict=True) if place is None}

    def _scan(self) -> None:
        """Map the files that have come since the last call; remove damaged ones, and drafts of killed processes."""
        for path in sorted(self.folder.glob(f"*{_SUFFIX}*")):
            with suppress(OSError):  # another process has removed it
                if path.name.startswith("."):
                    if time.time() - path.stat().st_mtime > _ABANDONED:
                        path.unlink()
                elif path.name not in self._files:
                    if (file := _read(path, self.encoder.width)) is None:
                        _remove(path)
                    else:
                        self._files[path.name] = file

    def _write(self, waiting: Mapping[_Key, str], done: Callable[[int], object]) -> None:
        """Encode captions and write them as one file, without those that another process has written meanwhile."""
        self._scan()
        texts = self._missing(waiting)
        done(len(waiting) - len(texts))
        if not texts:
            return
        ordered = sorted(texts)
        keys = np.array(ordered, np.uint64)
        path = self.folder / f"{hashlib.sha256(keys.tobytes()).hexdigest()[:24]}{_SUFFIX}"

        def write(draft: Path) -> None:
            ends, sums, total = [], [], 0
            with draft.open("wb") as file:
                for start in range(0, len(ordered), _AT_ONCE):
                    chosen = [texts[key] for key in ordered[start : start + _AT_ONCE]]
                    for vectors in self.encoder.pieces(chosen, self.length):
                        content = vectors.numpy().astype("<f2").tobytes()
                        file.write(content)
                        total += len(vectors)
                        ends.append(total)
                        sums.append(zlib.crc32(content))
                    done(len(chosen))
                columns: tuple[Any, ...] = (keys[:, 0], keys[:, 1], ends, sums)
                index = b"".join(
                    np.asarray(column, kind).tobytes() for column, kind in zip(columns, _INDEX, strict=True)
                )
                file.write(bytes(-file.tell() % _ALIGNED))
                file.write(index)
                file.write(_footer(index, len(ordered), total, self.encoder.width))

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, write)
        except OSError as error:
            if (
                _read(path, self.encoder.width) is None
            ):  # another process has it, where a mapped file cannot be replaced
                raise DataError(
                    f"{error.filename or path}: the vectors of captions cannot be kept: {error.strerror or error}; set "
                    "AIMAMBA_CACHE to a folder with room that can be written"
                ) from error
        self._scan()


def _key(text: Any) -> _Key:
    if not isinstance(text, str):
        raise DataError(f"a caption is text, got {type(text).__name__}")
    if not is_unicode(text):
        raise DataError(f"caption {text[:40]!r}: has half of a surrogate pair, which is no character")
    first, second = struct.unpack_from("<QQ", hashlib.sha256(text.encode()).digest())
    return first, second


def _blocks(captions: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(captions)
    while block := list(islice(iterator, _LOOKED_UP)):
        yield block


def _footer(index: bytes, captions: int, vectors: int, width: int) -> bytes:
    numbers = _FOOTER.pack(_MAGIC, captions, vectors, width, bytes(32))
    return _FOOTER.pack(_MAGIC, captions, vectors, width, hashlib.sha256(index + numbers).digest())


def _read(path: Path, width: int) -> _File | None:
    """Map a file and check its index; None if it is truncated, damaged or something else."""
    try:
        raw = np.memmap(path, np.uint8, "r")
        footer = raw[-_FOOTER.size :].tobytes()
        _, captions, vectors, found, _ = _FOOTER.unpack(footer)
    except (OSError, ValueError, struct.error):  # missing, empty, short
        return None
    size = 2 * vectors * width
    start = -(-size // _ALIGNED) * _ALIGNED
    lengths = [captions * kind.itemsize for kind in _INDEX]
    if found != width or captions < 1 or start + sum(lengths) + len(footer) != len(raw):
        return None
    index = raw[start : start + sum(lengths)]
    if footer != _footer(index.tobytes(), captions, vectors, width):
        return None
    bounds = np.cumsum([0, *lengths])
    keys, checks, ends, sums = (index[a:b].view(kind) for a, b, kind in zip(bounds, bounds[1:], _INDEX, strict=False))
    return _File(path, keys, checks, ends, sums, raw[:size].view("<f2").reshape(vectors, width))


def _remove(path: Path) -> None:
    print(f"{path}: damaged; the vectors of its captions are computed again", file=sys.stderr)
    with suppress(OSError):
        path.unlink()
