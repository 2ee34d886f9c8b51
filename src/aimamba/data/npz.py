"""The ``.npz`` files of ADM's evaluator, read and written in a stream, so that memory does not grow with the file.

``arr_0`` holds images and ``arr_1`` their labels; ``mu``, ``sigma``, ``mu_s`` and ``sigma_s`` hold Inception's
statistics.
"""

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from aimamba.data.images import Images, split
from aimamba.errors import DataError, counted
from aimamba.files import amount, write_atomically

_IMAGES, _LABELS = "arr_0", "arr_1"
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, struct.error),
    *(ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError),
    *(SyntaxError, MemoryError, RecursionError, RuntimeError, tokenize.TokenError),
)
"""What reading can raise; RuntimeError where the file has a password or a rare compression. A header is Python source,
and damaged it raises whatever Python's parser does; bzip2's errors are OSError."""

_SKIPPED_AT_ONCE = 64  # images
_LARGEST_LABELS = 1 << 30  # bytes
_MOST_CLASSES = 1 << 20
_SMALLEST_SHARE = 1 / 1032  # of its length, to which deflate compresses a file at best
_LARGEST_STATISTICS = 1 << 29  # bytes; 2,048 features squared are 34 MB


class NpzStatistics(NamedTuple):
    """Inception's statistics of the images, or of the larger set that the images are a part of.

    Attributes:
        mean: Of ``pool_3``, (D,).
        covariance: (D, D).
        spatial_mean: Of seven channels of ``mixed_6/conv``, (E,), where the file has them.
        spatial_covariance: (E, E), likewise.
    """

    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]
    spatial_mean: Float64[np.ndarray, " e"] | None = None
    spatial_covariance: Float64[np.ndarray, "e e"] | None = None


class NpzImages(Images):
    """The images of a file; a file may also hold statistics alone, and then has no images.

    Attributes:
        size: Side of the images in pixels; 0 where there are none.
        labels: ``arr_1``, or None.
        class_names: Empty, as the file has no names.
        statistics: The stored statistics, or None.
    """

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        """Read the headers.

        Args:
            path: The file.
            name: The name that the user gave it; by default its path.

        Raises:
            DataError: The file is damaged, holds neither images nor statistics, or its images are not square uint8.
        """
        self.name = str(path) if name is None else name
        self._path = path
        self.class_names = ()
        if not path.is_file():
            raise DataError(f"{self.name}: this is not a file; give an .npz file")
        try:
            with zipfile.ZipFile(path) as archive:
                keys = {name.removesuffix(".npy") for name in archive.namelist()}
                self.statistics = _statistics(archive, keys)
                labels = _read_array(archive, _LABELS, _LARGEST_LABELS) if _LABELS in keys else None
            shape, dtype = self._header() if _IMAGES in keys else ((0, 0, 0, 3), np.dtype(np.uint8))
        except _DAMAGED as error:
            detail = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{self.name}: not a readable .npz file ({detail}); fetch or write it again") from error
        sides = shape[1:3] if _IMAGES in keys else (1, 1)
        if dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or 0 in sides:
            raise DataError(
                f"{self.name}: arr_0 holds {dtype} of shape {shape}; expected square images as uint8 (n, s, s, 3)"
            )
        if _IMAGES not in keys and self.statistics is None:
            raise DataError(
                f"{self.name}: holds {', '.join(sorted(keys)) or 'no array'}; expected arr_0, or mu and sigma"
            )
        self._count, self.size = shape[0], shape[1]
        self.labels = None if labels is None or not self._count else self._checked(labels)

    def _checked(self, labels: np.ndarray) -> Int64[np.ndarray, " n"]:
        numbers = labels.shape == (self._count,) and np.issubdtype(labels.dtype, np.integer)
        if not numbers or labels.min() < 0 or labels.max() >= _MOST_CLASSES:
            held = f"{labels.dtype} of shape {labels.shape}"
            held += f" from {labels.min()} to {labels.max()}" if numbers else ""
            raise DataError(
                f"{self.name}: arr_1 holds {held}; expected the class of each of the {counted(self._count, 'image')}, "
                f"whole numbers from 0 to {_MOST_CLASSES - 1:,}, or no arr_1"
            )
        return labels.astype(np.int64)

    def __len__(self) -> int:
        """Return the number of images."""
        return self._count

    @property
    def identity(self) -> dict[str, Any]:
        """Place, length and time of the file."""
        stat = self._path.stat()
        return {"npz": str(self._path.resolve()), "bytes": stat.st_size, "time": stat.st_mtime_ns}

    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Return one image; ``rng`` is not used.

        Raises:
            IndexError: ``index`` is out of range.
        """
        self._check(index)
        return self.take([index])[0]

    def read(self, units: Iterable[range]) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield the images of some units in rising order, in one pass through the file; none of a file of statistics.

        Nothing is left out without being read, so that a file that is damaged anywhere is found.
        """
        if not self._count:
            return
        with self._open() as file:
            _read_header(file)
            place = 0
            for unit in units:
                for skipped in split(unit.start - place, _SKIPPED_AT_ONCE):
                    self._read(file, len(skipped))
                yield self._read(file, len(unit), last=unit.stop == self._count)
                place = unit.stop

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Return some images, in one pass through the file."""
        found: dict[int, np.ndarray] = {}
        with self._open() as file:
            _read_header(file)
            begin = file.tell()
            for index in sorted(set(indices)):
                file.seek(begin + index * self.size**2 * 3)
                found[index] = self._read(file, 1)[0]
        return np.stack([found[index] for index in indices])

    def _header(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with zipfile.ZipFile(self._path) as archive, archive.open(f"{_IMAGES}.npy") as file:
            assert isinstance(file, zipfile.ZipExtFile)
            shape, fortran, dtype = _read_header(file)
            member = archive.getinfo(f"{_IMAGES}.npy")
        if fortran:
            raise ValueError("arr_0 is stored column by column")
        announced, most = math.prod(shape) * dtype.itemsize, member.file_size
        if member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the lengths in a header may be false
            most = min(most, int(self._path.stat().st_size / _SMALLEST_SHARE))
        if announced > most:
            raise ValueError(f"arr_0 announces {amount(announced)}, more than there are")
        return shape, dtype

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipExtFile]:
        with zipfile.ZipFile(self._path) as archive, archive.open(f"{_IMAGES}.npy") as file:
            assert isinstance(file, zipfile.ZipExtFile)
            yield file

    def _read(self, file: zipfile.ZipExtFile, count: int, *, last: bool = False) -> UInt8[np.ndarray, "b s s 3"]:
        length = count * self.size**2 * 3
        try:
            content = file.read(length)
            if last:
                file.read(1)  # the checksum is compared at the end
        except _DAMAGED as error:
            raise DataError(f"{self.name}: arr_0 is damaged ({error}); fetch or write it again") from error
        if len(content) < length:
            raise DataError(f"{self.name}: arr_0 ends before its {self._count} images; fetch or write it again")
        return np.frombuffer(content, np.uint8).reshape(count, self.size, self.size, 3)


def npz_bytes(count: int, size: int) -> int:
    """Return how long a file of ``count`` images of ``size`` pixels a side, with labels, is."""
    return count * (size**2 * 3 + 8) + 1024


def write_npz(
    path: Path,
    batches: Iterable[UInt8[np.ndarray, "b s s 3"]],
    labels: Int64[np.ndarray, " n"] | None,
    size: int,
    *,
    count: int | None = None,
) -> None:
    """Write images batch by batch, for ADM's evaluator and everything that reads its files.

    The draft beside the file has a fixed name, so that kills do not fill the disk: only one process may write a file.

    Args:
        path: The file; it is either whole or absent.
        batches: As many images as there are labels.
        labels: Their classes, or None.
        size: Their side in pixels.
        count: Their number, where there are no labels.
    """
    total = (count or 0) if labels is None else len(labels)

    def write(draft: Path) -> None:
        with zipfile.ZipFile(draft, "w") as archive:
            with archive.open(f"{_IMAGES}.npy", "w", force_zip64=True) as file:
                shape = (total, size, size, 3)
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                written = 0
                for images in batches:
                    file.write(np.ascontiguousarray(images).tobytes())
                    written += len(images)
                assert written == total, f"{written} images, expected {total}"
            if labels is not None:
                with archive.open(f"{_LABELS}.npy", "w") as file:
                    np.save(file, labels)

    write_atomically(path, write, draft=f".{path.name}.partial", size=3 * total * size**2)


def _read_header(file: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if any(length < 0 for length in shape):
        raise ValueError(f"an array has the shape {shape}")
    return shape, fortran, dtype


def _read_array(archive: zipfile.ZipFile, key: str, most: int) -> np.ndarray:
    """Read an array of numbers whose header announces at most ``most`` bytes, taking no more memory than that."""
    with archive.open(f"{key}.npy") as file:
        assert isinstance(file, zipfile.ZipExtFile)
        shape, fortran, dtype = _read_header(file)
        if dtype.kind not in "iufb":
            raise ValueError(f"{key} holds {str(dtype)[:40]}, expected numbers")
        length = math.prod(shape) * dtype.itemsize
        if length > most:
            raise ValueError(f"{key} announces {length:,} bytes, more than {most:,}")
        content = file.read(length)
        file.read(1)  # the checksum is compared at the end
    if len(content) < length:
        raise ValueError(f"{key} ends early")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _statistics(archive: zipfile.ZipFile, keys: set[str]) -> NpzStatistics | None:
    if not {"mu", "sigma"} <= keys:
        return None
    spatial = _moments(archive, "_s") if {"mu_s", "sigma_s"} <= keys else (None, None)
    return NpzStatistics(*_moments(archive, ""), *spatial)


def _moments(archive: zipfile.ZipFile, suffix: str) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "d d"]]:
    mean, covariance = (
        _read_array(archive, f"{key}{suffix}", _LARGEST_STATISTICS).astype(np.float64) for key in ("mu", "sigma")
    )
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mu{suffix} and sigma{suffix} have shapes {mean.shape} and {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"mu{suffix} or sigma{suffix} is not finite")
    return mean, covariance
