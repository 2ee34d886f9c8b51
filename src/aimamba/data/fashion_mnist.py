"""Fashion-MNIST (Xiao et al., arXiv 1708.07747): 70,000 grey-scale images of clothes, from the official IDX files."""

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from aimamba.config import check
from aimamba.data.images import Images
from aimamba.data.spec import FASHION_SIDES
from aimamba.data.splits import Split
from aimamba.data.transforms import half_mirrored
from aimamba.errors import DataError
from aimamba.files import expand_home

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_SIDE = 28  # of the official images
_PREFIXES = {"train": "train", "held-out": "t10k"}
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_HOW_TO_GET = (
    "install Debian's package dataset-fashion-mnist, or get the four files from "
    "github.com/zalandoresearch/fashion-mnist and name their folder, as in fashion-mnist:FOLDER"
)


class FashionMNIST(Images):
    """The official splits: 60,000 images to train on, and the 10,000 test images held out, in the files' order.

    Images of 28 pixels get a margin of two pixels in black, the background colour, so that they are 32 pixels wide and
    can be halved; grey becomes RGB. The pixels themselves are never resampled.

    Attributes:
        class_names: The official names; a label is an index into them.
        labels: Class index of every image, (n,) int64.
        size: Side of the images in pixels.
    """

    class_names = CLASS_NAMES

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        size: int = 32,
        split: Split = "train",
        per_class: int | None = None,
        flip: bool = False,
        name: str | None = None,
    ) -> None:
        """Read the two files of a split.

        Args:
            folder: Where the IDX files are, gzipped or not. By default ``fashion-mnist`` in ``$AIMAMBA_DATA``, or where
                Debian's package puts it.
            size: 32, or 28 for images without a margin.
            split: ``"train"`` or ``"held-out"``; there is no ``"all"``.
            per_class: At most this many images of each class, the first ones.
            flip: Mirror a random view half of the time.
            name: The name that the user gave the set; by default as ``fashion-mnist:train``.

        Raises:
            ConfigError: A setting is out of range.
            DataError: A file is missing, truncated, or not one of Fashion-MNIST's.
        """
        check(
            size in FASHION_SIDES,
            f"Fashion-MNIST has images of 32 pixels, or 28 without a margin; got {size}, give --size 32 or 28",
        )
        check(split in _PREFIXES, f"Fashion-MNIST has no split {split!r}; use train or held-out")
        check(per_class is None or per_class >= 1, f"per_class must be at least 1, got {per_class}")
        place = _find() if folder is None else expand_home(folder)
        prefix = _PREFIXES[split]
        self.name = f"fashion-mnist:{split}" if name is None else name
        images, images_path = _read_idx(place, f"{prefix}-images-idx3-ubyte", axes=3)
        labels, labels_path = _read_idx(place, f"{prefix}-labels-idx1-ubyte", axes=1)
        if images.shape[1:] != (_SIDE, _SIDE):
            height, width = images.shape[1:]
            raise DataError(f"{images_path}: its images are {height} x {width}, not 28 x 28: {_HOW_TO_GET}")
        if len(labels) != len(images):
            raise DataError(f"{labels_path}: {len(labels)} labels for {len(images)} images: {_HOW_TO_GET}")
        if len(labels) == 0 or labels.max() >= len(CLASS_NAMES):
            raise DataError(f"{labels_path}: labels must lie in 0 to 9: {_HOW_TO_GET}")
        chosen = np.arange(len(labels)) if per_class is None else _first(labels, per_class)
        self.size = size
        self.labels: Int64[np.ndarray, "n"] = labels[chosen].astype(np.int64)
        self._files = [images_path, labels_path]
        self._about = [size, split, per_class]
        self._images: UInt8[np.ndarray, "n 28 28"] = images[chosen]
        self._flip = flip

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def identity(self) -> dict[str, Any]:
        """Size, split and number; place, length and time of the files."""
        stats = [(path, path.stat()) for path in self._files]
        files = [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        return {"fashion-mnist": self._about, "files": files}

    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Return one image.

        Args:
            index: Which one, in [0, n).
            rng: Chooses whether the image is mirrored, if ``flip`` is set; not used otherwise.

        Returns:
            RGB image, (size, size, 3) uint8.

        Raises:
            IndexError: ``index`` is out of range.
        """
        self._check(index)
        image = np.pad(self._images[index], (self.size - _SIDE) // 2)
        if self._flip and rng is not None:
            image = half_mirrored(image, rng)
        return np.stack([image] * 3, axis=-1)


def _find() -> Path:
    """Return the first of the usual places that exists."""
    chosen = os.environ.get("AIMAMBA_DATA")
    places = [expand_home(chosen) / "fashion-mnist"] if chosen else []
    places.append(_DEBIAN)
    for place in places:
        if place.is_dir():
            return place
    raise DataError(f"Fashion-MNIST is not in {' or '.join(map(str, places))}: {_HOW_TO_GET}")


def _read_idx(folder: Path, name: str, *, axes: int) -> tuple[np.ndarray, Path]:
    """Read an array of bytes in the IDX format: zero, zero, type, axes, then the length of each axis. Also its path."""
    path = next((place for place in (folder / name, folder / f"{name}.gz") if place.is_file()), None)
    if path is None:
        raise DataError(f"{folder}: there is no {name} or {name}.gz: {_HOW_TO_GET}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read, perhaps cut short: {_HOW_TO_GET}") from error
    start = 4 + 4 * axes
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < start:
        raise DataError(f"{path}: this is not an IDX file of bytes with {axes} axes: {_HOW_TO_GET}")
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", axes, offset=4))
    if len(content) - start != int(np.prod(shape)):
        raise DataError(
            f"{path}: holds {len(content) - start:,} bytes, but its header announces {' x '.join(map(str, shape))}: "
            f"{_HOW_TO_GET}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape), path


def _first(labels: UInt8[np.ndarray, "n"], per_class: int) -> Int64[np.ndarray, "m"]:
    """Return the positions of the first ``per_class`` images of each class, increasing."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(len(CLASS_NAMES))]))
