"""Avatars kept on disk; several processes may draw and store the same ones at once."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from aimamba.files import write_atomically


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
