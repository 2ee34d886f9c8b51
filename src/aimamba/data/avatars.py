"""Avatars drawn by artists' programs (DiceBear): real images for a first run, tests and the shipped weights.

A style is a class, a seed is an image. They are drawn when first asked for and kept on disk; nothing is downloaded.
"""

import os
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from aimamba.config import check
from aimamba.data.cache import load_images, store_images
from aimamba.data.drawing import Order, available_styles, draw_all
from aimamba.data.splits import Split
from aimamba.errors import DataError, suggest
from aimamba.files import cache_folder

# Ten styles under CC0 1.0 that look well and draw fast.
STYLES = (
    "critters",
    "sprouts",
    "planets",
    "pixel-art",
    "voxel-bot",
    "voxel-art",
    "clay",
    "open-peeps",
    "thumbs",
    "landscape",
)

_SMALLEST, _LARGEST = 8, 4096  # pixels; DiceBear draws no larger ones


class Avatars:
    """Avatars in several styles, the style being the class.

    Image ``i`` of style ``s`` is the avatar whose seed is ``{s}-{split}-{i}`` on a white ground; its pixels depend on
    that, on ``size`` and on the pinned versions of ``dicebear-core``, ``dicebear-styles`` and ``resvg-py`` alone. (The
    styles ``initials`` and ``initial-face`` hold text, drawn in whatever font the system has.) Images are ordered by
    class, then by number. Drawing 11,000 images of 64 pixels takes half a minute on two cores; they are kept in one
    ``.npy`` file for each style, size and split, and mapped from there, also when more are asked for later.

    Attributes:
        class_names: The styles; a label is an index into them.
        labels: Class index of every image, (n,) int64.
        size: Side of the images in pixels.
    """

    def __init__(
        self,
        size: int = 32,
        split: Split = "train",
        per_class: int = 1000,
        styles: Sequence[str] = STYLES,
        *,
        skip: int = 0,
        flip: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> None:
        """Draw the images, or find them in the cache.

        Args:
            size: Side in pixels, 8 to 4096.
            split: ``"train"`` or ``"held-out"``, which grow from different seeds; avatars have no ``"all"``.
            per_class: Images of each style.
            styles: Names of the styles, in the order of their labels; any that DiceBear has.
            skip: Images of each style to pass over first, such as those that an earlier run has seen.
            flip: Mirror a random view half of the time. Off by default: avatars are not symmetric.
            cache_dir: Where to keep the drawings; by default ``avatars`` in ``cache_folder()``. If it cannot be
                written, they are kept in memory, with a warning.
            progress: Show a bar on stderr while drawing.

        Raises:
            ConfigError: A number is out of range, or the split is unknown.
            DataError: A style is unknown or named twice.
        """
        check(_SMALLEST <= size <= _LARGEST, f"size must be {_SMALLEST} to {_LARGEST} pixels for avatars, got {size}")
        check(split in ("train", "held-out"), f"split must be 'train' or 'held-out' for avatars, got {split!r}")
        check(per_class >= 1, f"per_class must be at least 1, got {per_class}")
        check(skip >= 0, f"skip must not be negative, got {skip}")
        _check_styles(styles)
        self.size = size
        self.class_names = tuple(styles)
        self.labels: Int64[np.ndarray, "n"] = np.repeat(np.arange(len(styles), dtype=np.int64), per_class)
        self._per_class = per_class
        self._skip = skip
        self._flip = flip
        folder = cache_folder() / "avatars" if cache_dir is None else Path(cache_dir).expanduser()
        paths = [folder / _file_name(style, size, split) for style in styles]
        self._drawn = _open(paths, [Order(style, split, 0, skip + per_class, size) for style in styles], progress)

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
        label, number = divmod(index, self._per_class)
        image = self._drawn[label][self._skip + number]
        if self._flip and rng is not None and rng.random() < 0.5:
            image = image[:, ::-1]
        return np.array(image)

    def __getstate__(self) -> dict[str, Any]:
        """Send the paths of mapped files to another process, not their content."""
        drawn = [Path(str(part.filename)) if isinstance(part, np.memmap) else part for part in self._drawn]
        return {**self.__dict__, "_drawn": drawn}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the files anew."""
        self.__dict__.update(state)
        self._drawn = [np.load(part, mmap_mode="r") if isinstance(part, Path) else part for part in self._drawn]


def _check_styles(styles: Sequence[str]) -> None:
    known = available_styles()
    for style in styles:
        if style not in known:
            raise DataError(f"there is no avatar style {style!r} among the {len(known)}{suggest(style, known)}")
    if not styles or len(set(styles)) < len(styles):
        raise DataError(f"avatar styles must name at least one style and none twice, got {', '.join(styles) or 'none'}")


def _file_name(style: str, size: int, split: str) -> str:
    makers = {"dicebear": "dicebear-core", "styles": "dicebear-styles", "resvg": "resvg-py"}
    versions = "-".join(f"{short}{version(package)}" for short, package in makers.items())
    return f"{style}-{size}px-{split}-{versions}.npy"


def _open(paths: list[Path], orders: list[Order], progress: bool) -> list[UInt8[np.ndarray, "n s s 3"]]:
    """Map what each file holds and draw what it lacks; a file is stored as soon as it is complete."""
    drawn = []
    for path, order in zip(paths, orders, strict=True):
        stored = load_images(path, order.size)
        drawn.append(np.empty((0, order.size, order.size, 3), np.uint8) if stored is None else stored)
    short = [place for place, order in enumerate(orders) if len(drawn[place]) < order.last]
    rest = [orders[place]._replace(first=len(drawn[place])) for place in short]
    writable = True
    for place, new in zip(short, draw_all(rest, progress=progress), strict=True):
        drawn[place] = np.concatenate([drawn[place], new])
        try:
            if writable:
                drawn[place] = store_images(paths[place], drawn[place])
        except OSError as error:
            writable = False
            warnings.warn(
                f"{paths[place].parent}: cannot keep the avatars here ({error.strerror or error}), so they are drawn "
                "again in every run: set AIMAMBA_CACHE to a folder that can be written",
                stacklevel=3,
            )
    return drawn
