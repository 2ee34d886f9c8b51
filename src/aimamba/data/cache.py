"""Drawn images kept on disk; several processes may draw and store the same ones at once."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from aimamba.data.images import Images
from aimamba.data.transforms import half_mirrored
from aimamba.files import write_atomically


class KeptImages(Images):
    """Images that were drawn once, in one array for each class, mapped from a file wherever it can be kept."""

    _drawn: list[UInt8[np.ndarray, "n s s 3"]]
    _flip: bool

    def _kept(self, label: int, number: int, rng: np.random.Generator | None) -> UInt8[np.ndarray, "s s 3"]:
        """Return image ``number`` of a class, mirrored half of the time if ``flip`` is set and ``rng`` given."""
        image = self._drawn[label][number]
        return np.array(half_mirrored(image, rng) if self._flip and rng is not None else image)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the paths of mapped files, not their content."""
        drawn = [Path(str(part.filename)) if isinstance(part, np.memmap) else part for part in self._drawn]
        return {**self.__dict__, "_drawn": drawn}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the files again."""
        self.__dict__.update(state)
        self._drawn = [np.load(part, mmap_mode="r") if isinstance(part, Path) else part for part in self._drawn]


def warn_not_kept(folder: Path, what: str, error: OSError) -> None:
    """Warn that drawn images cannot be kept in a folder."""
    warnings.warn(
        f"{folder}: cannot keep the {what} here ({error.strerror or error}), so they are drawn again in every run: "
        "set AIMAMBA_CACHE to a folder that can be written",
        stacklevel=4,
    )


def load_images(path: Path, size: int) -> UInt8[np.ndarray, "n s s 3"] | None:
    """Map a file of images into memory.

    Args:
        path: A ``.npy`` file; it may be missing, truncated or something else.
        size: Side that the images must have, in pixels.

    Returns:
        Read-only array backed by the file, or None if it does not hold such images.
    """
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # whatever is wrong with the file, its images are drawn again
        return None
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (size, size, 3):
        return images
    return None


def store_array(path: Path, array: np.ndarray) -> None:
    """Write an array to an ``.npy`` file in one atomic step."""

    def write(draft: Path) -> None:
        with draft.open("wb") as file:
            np.save(file, array)

    write_atomically(path, write, size=array.nbytes)


def store_images(path: Path, images: UInt8[np.ndarray, "n s s 3"]) -> UInt8[np.ndarray, "m s s 3"]:
    """Store images in a file and map it into memory.

    If another process has stored at least as many images in the meantime, its file stays.

    Args:
        path: The file; its folder is made if needed.
        images: (n, size, size, 3) uint8.

    Returns:
        Read-only array backed by the file: at least n images, the first n being those passed in.

    Raises:
        OSError: The folder cannot be written.
    """
    size = images.shape[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = load_images(path, size)
    if stored is None or len(stored) < len(images):
        del stored  # Windows does not replace a file that is mapped
        store_array(path, images)
        stored = load_images(path, size)
    return images if stored is None else stored
