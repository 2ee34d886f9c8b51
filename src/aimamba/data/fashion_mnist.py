"""Fashion-MNIST (Xiao et al., arXiv 1708.07747): 70,000 grey images of clothes, from the official IDX files."""

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from aimamba.config import check
from aimamba.data.splits import Split
from aimamba.errors import DataError

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
    "github.com/zalandoresearch/fashion-mnist and name their folder: fashion-mnist:FOLDER"
)


class FashionMNIST:
    """The official split: 60,000 images to train on, and the 10,000 test images held out, in the files' order.

    An image of 28 pixels gets two black ones, the colour of its ground, on every side, so that it is 32 wide and can
    be halved; grey becomes RGB. The pixels themselves are never resampled.

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
    ) -> None:
        """Read the two files of a split.

        Args:
            folder: Where the IDX files are, gzipped or not. By default ``fashion-mnist`` in ``$AIMAMBA_DATA``, or where
                Debian's package puts it.
            size: 32, or 28 for images without a margin.
            split: ``"train"`` or ``"held-out"``; there is no ``"all"``.
            per_class: At most this many images of each class, the first ones.
            flip: Mirror a random view half of the time.

        Raises:
            ConfigError: A setting is out of range.
            DataError: A file is missing, truncated, or not one of Fashion-MNIST's.
        """
        check(size in (_SIDE, 32), f"size must be 32, or 28 for no margin, for Fashion-MNIST, got {size}")
        check(split in _PREFIXES, f"split must be 'train' or 'held-out' for Fashion-MNIST, got {split!r}")
        check(per_class is None or per_class >= 1, f"per_class must be at least 1, got {per_class}")
        place = _find() if folder is None else Path(folder).expanduser()
        prefix = _PREFIXES[split]
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
        self._images: UInt8[np.ndarray, "n 28 28"] = images[chosen]
        self._flip = flip

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Give one image.

        Args:
            index: Which one, in [0, n).
            rng: Draws whether the image is mirrored, if ``flip`` was asked for; nothing is drawn from it otherwise.

        Returns:
            Bytes of the RGB image, (size, size, 3).

        Raises:
            IndexError: ``index`` is out of range.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        image = np.pad(self._images[index], (self.size - _SIDE) // 2)
        if self._flip and rng is not None and rng.random() < 0.5:
            image = image[:, ::-1]
        return np.stack([image] * 3, axis=-1)


def _find() -> Path:
    """The first of the usual places that is there."""
    chosen = os.environ.get("AIMAMBA_DATA")
    places = [Path(chosen).expanduser() / "fashion-mnist"] if chosen else []
    places.append(_DEBIAN)
    for place in places:
        if place.is_dir():
            return place
    raise DataError(f"Fashion-MNIST is not in {' or '.join(map(str, places))}: {_HOW_TO_GET}")


def _read_idx(folder: Path, name: str, *, axes: int) -> tuple[np.ndarray, Path]:
    """An array of bytes in the IDX format (zero, zero, type, axes, then the length of each axis), and its file."""
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
            f"{path}: {len(content) - start:,} bytes where {' x '.join(map(str, shape))} are announced: {_HOW_TO_GET}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape), path


def _first(labels: UInt8[np.ndarray, "n"], per_class: int) -> Int64[np.ndarray, "m"]:
    """Where the first few images of each class are, increasing."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(len(CLASS_NAMES))]))
