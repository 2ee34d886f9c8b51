"""ADM's ``.npz``: images as ``arr_0``, labels as ``arr_1``, Inception's statistics as ``mu``, ``sigma``, ``mu_s``,
``sigma_s``; read and written image by image, whatever the size of the file.
"""

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from aimamba.errors import DataError
from aimamba.evaluation.statistics import Gaussian
from aimamba.files import write_atomically

_IMAGES, _LABELS = "arr_0", "arr_1"
_DAMAGED = (zipfile.BadZipFile, ValueError, EOFError, KeyError, RuntimeError)
"""What reading can raise; the last where a password is wanted or the compression is a rare one."""


class StoredStatistics(NamedTuple):
    """Inception's statistics of the set that the images of a file were taken from.

    Attributes:
        pooled: Of ``pool_3``.
        spatial: Of seven channels of ``mixed_6/conv``, where they are stored.
    """

    pooled: Gaussian
    spatial: Gaussian | None


class NpzSource:
    """The images of a file, read in a stream; a file may also hold statistics alone and has no image then.

    Attributes:
        name: As the user gave it.
        size: Side in pixels; 0 where there are no images.
        labels: ``arr_1``, or None.
        class_names: Empty: the file has no names.
        statistics: Those stored, or None.
    """

    def __init__(self, name: str, path: Path) -> None:
        """Read the headers.

        Raises:
            DataError: The file is damaged, holds neither images nor statistics, or its images are no square bytes.
        """
        self.name = name
        self._path = path
        self.class_names: tuple[str, ...] = ()
        try:
            with path.open("rb") as file, np.load(file) as content:
                keys = set(content.files)
                self.statistics = _statistics(content)
                labels = content[_LABELS] if _LABELS in keys else None
            shape, dtype = self._header() if _IMAGES in keys else ((0, 0, 0, 3), np.dtype(np.uint8))
        except _DAMAGED as error:
            raise DataError(f"{name}: not a readable .npz file ({error}); fetch or write it again") from error
        if dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            raise DataError(
                f"{name}: arr_0 holds {dtype} of shape {shape}; expected square images as uint8 (n, s, s, 3)"
            )
        if _IMAGES not in keys and self.statistics is None:
            raise DataError(f"{name}: holds {', '.join(sorted(keys)) or 'nothing'}; expected arr_0, or mu and sigma")
        self._count, self.size = shape[0], shape[1]
        self.labels: Int64[np.ndarray, " n"] | None = None
        if labels is not None and labels.shape == (self._count,) and np.issubdtype(labels.dtype, np.integer):
            self.labels = labels.astype(np.int64)

    def __len__(self) -> int:
        """How many images."""
        return self._count

    @property
    def identity(self) -> dict[str, Any]:
        """Place, length and time of the file."""
        stat = self._path.stat()
        return {"npz": str(self._path.resolve()), "bytes": stat.st_size, "time": stat.st_mtime_ns}

    def batches(self, batch_size: int) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """All images in order."""
        with self._open() as file:
            _read_header(file)
            for start in range(0, self._count, batch_size):
                yield self._read(file, min(batch_size, self._count - start))

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Some images, in one pass through the file."""
        found: dict[int, np.ndarray] = {}
        with self._open() as file:
            _read_header(file)
            begin = file.tell()
            for index in sorted(set(indices)):
                file.seek(begin + index * self.size**2 * 3)
                found[index] = self._read(file, 1)[0]
        return np.stack([found[index] for index in indices])

    def _header(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with self._open() as file:
            shape, fortran, dtype = _read_header(file)
        if fortran:
            raise ValueError("arr_0 is stored column by column")
        return shape, dtype

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipExtFile]:
        with zipfile.ZipFile(self._path) as archive, archive.open(f"{_IMAGES}.npy") as file:
            assert isinstance(file, zipfile.ZipExtFile)
            yield file

    def _read(self, file: zipfile.ZipExtFile, count: int) -> UInt8[np.ndarray, "b s s 3"]:
        length = count * self.size**2 * 3
        try:
            content = file.read(length)
        except (zipfile.BadZipFile, EOFError) as error:
            raise DataError(f"{self.name}: arr_0 is damaged ({error}); fetch or write it again") from error
        if len(content) < length:
            raise DataError(f"{self.name}: arr_0 ends before its {self._count} images; fetch or write it again")
        return np.frombuffer(content, np.uint8).reshape(count, self.size, self.size, 3)


def write_npz(
    path: Path, batches: Iterable[UInt8[np.ndarray, "b s s 3"]], labels: Int64[np.ndarray, " n"], size: int
) -> None:
    """Write images as they come, for ADM's evaluator and everything that reads its files.

    Args:
        path: The file; it is whole or absent.
        batches: As many images as there are labels.
        labels: Their classes.
        size: Their side in pixels.
    """

    def write(draft: Path) -> None:
        with zipfile.ZipFile(draft, "w") as archive:
            with archive.open(f"{_IMAGES}.npy", "w", force_zip64=True) as file:
                shape = (len(labels), size, size, 3)
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                count = 0
                for images in batches:
                    file.write(np.ascontiguousarray(images).tobytes())
                    count += len(images)
                assert count == len(labels), f"{count} images, {len(labels)} labels"
            with archive.open(f"{_LABELS}.npy", "w") as file:
                np.save(file, labels)

    write_atomically(path, write)


def _read_header(file: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    return read(file)


def _statistics(content: Any) -> StoredStatistics | None:
    if "mu" not in content.files or "sigma" not in content.files:
        return None
    spatial = _gaussian(content, "_s") if "mu_s" in content.files and "sigma_s" in content.files else None
    return StoredStatistics(_gaussian(content, ""), spatial)


def _gaussian(content: Any, suffix: str) -> Gaussian:
    mean, covariance = (torch.from_numpy(content[f"{key}{suffix}"].astype(np.float64)) for key in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mu{suffix} and sigma{suffix} have shapes {tuple(mean.shape)} and {tuple(covariance.shape)}")
    return Gaussian(mean, covariance)
