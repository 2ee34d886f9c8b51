"""Avatars drawn by artists' programs (DiceBear): real images for a first run, tests and the packaged weights.

A style is a class, a seed is an image. Avatars are drawn on first use and kept on disk; nothing is downloaded.
"""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from aimamba.config import check
from aimamba.data.cache import KeptImages, load_images, store_images, warn_not_kept
from aimamba.data.drawing import DrawRequest, available_styles, draw_all
from aimamba.data.splits import Split
from aimamba.errors import DataError, suggest
from aimamba.files import cache_folder, expand_home

# Ten styles under CC0 1.0 that look good and are fast to draw.
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

AVATARS_PER_CLASS = {"train": 3000, "held-out": 500}
"""Default number of avatars of each style."""

MOST_PER_CLASS = 1_000_000

PACKAGES = ("dicebear-core", "dicebear-styles", "resvg-py")  # which decide the pixels
_SMALLEST, _LARGEST = 8, 4096  # pixels; DiceBear draws no larger ones


class Avatars(KeptImages):
    """Avatars in several styles; each style is a class.

    Image ``i`` of style ``s`` is the avatar with the seed ``{s}-{split}-{i}`` on a white background. Its pixels depend
    on that, on ``size`` and on the pinned versions of ``dicebear-core``, ``dicebear-styles`` and ``resvg-py`` alone.
    (The styles ``initials`` and ``initial-face`` hold text, drawn in whatever font the system has.) Images are ordered
    by class, then by number. Drawing 11,000 images of 64 pixels takes half a minute on two cores. They are kept in one
    ``.npy`` file for each style, size and split, and mapped into memory; the file grows when more are needed.

    Attributes:
        class_names: The styles; a label is an index into them.
        labels: Class index of every image, (n,) int64.
        size: Side of the images in pixels.
    """

    def __init__(
        self,
        size: int = 32,
        split: Split = "train",
        per_class: int | None = None,
        styles: Sequence[str] = STYLES,
        *,
        skip: int = 0,
        flip: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = False,
        name: str | None = None,
    ) -> None:
        """Draw the images, or load them from the cache.

        Args:
            size: Side in pixels, 8 to 4096.
            split: ``"train"`` or ``"held-out"``, which have different seeds; avatars have no ``"all"``.
            per_class: Images of each style; by default 3,000 to train on or 500 held out.
            styles: Names of the styles, in the order of their labels; any that DiceBear has.
            skip: How many images of each style to skip first, such as those that an earlier run has seen.
            flip: Mirror a random view half of the time. Off by default: avatars are not symmetric.
            cache_dir: Where to keep the images; by default ``avatars`` in ``cache_folder()``. If it cannot be written,
                they are kept in memory, with a warning.
            progress: Show a bar on stderr while drawing.
            name: The name that the user gave the set; by default as ``avatars-64:train``.

        Raises:
            ConfigError: A number is out of range, or the split is unknown.
            DataError: A style is unknown or named twice.
        """
        check(_SMALLEST <= size <= _LARGEST, f"size must be {_SMALLEST} to {_LARGEST} pixels for avatars, got {size}")
        check(split in ("train", "held-out"), f"avatars have no split {split!r}; use train or held-out")
        per_class = AVATARS_PER_CLASS[split] if per_class is None else per_class
        check(per_class >= 1, f"per_class must be at least 1, got {per_class}")
        check(skip >= 0, f"skip must not be negative, got {skip}")
        last = skip + per_class
        check(last <= MOST_PER_CLASS, f"skip and per_class may be {MOST_PER_CLASS:,} in all, got {last:,}")
        _check_styles(styles)
        self.name = f"avatars-{size}:{split}" if name is None else name
        self.size = size
        self.class_names = tuple(styles)
        self.labels: Int64[np.ndarray, "n"] = np.repeat(np.arange(len(styles), dtype=np.int64), per_class)
        self._split = split
        self._per_class = per_class
        self._skip = skip
        self._flip = flip
        folder = cache_folder() / "avatars" if cache_dir is None else expand_home(cache_dir)
        paths = [folder / _file_name(style, size, split) for style in styles]
        self._drawn = _open(paths, [DrawRequest(style, split, 0, skip + per_class, size) for style in styles], progress)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def identity(self) -> dict[str, Any]:
        """Size, split, number and styles, and the versions of the packages that draw."""
        about = {"avatars": [self.size, self._split, self._per_class, *self.class_names]}
        skipped = {"skip": self._skip} if self._skip else {}
        return {**about, **skipped, **{package: version(package) for package in PACKAGES}}

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
        label, number = divmod(index, self._per_class)
        return self._kept(label, self._skip + number, rng)


def _check_styles(styles: Sequence[str]) -> None:
    known = available_styles()
    for style in styles:
        if style not in known:
            near = suggest(style, [*known, "train", "held-out"])
            some = "" if near else f"; the ten defaults are {', '.join(STYLES)}"
            raise DataError(f"there is no avatar style {style!r} among DiceBear's {len(known)}{near}{some}")
    if not styles:
        raise DataError("no avatar style is named; leave the colon out for all ten")
    twice = [style for style in styles if styles.count(style) > 1]
    if twice:
        raise DataError(f"the avatar style {twice[0]!r} is named twice; name each once")


def _file_name(style: str, size: int, split: str) -> str:
    makers = {"dicebear": "dicebear-core", "styles": "dicebear-styles", "resvg": "resvg-py"}
    versions = "-".join(f"{short}{version(package)}" for short, package in makers.items())
    return f"{style}-{size}px-{split}-{versions}.npy"


def _open(paths: list[Path], requests: list[DrawRequest], progress: bool) -> list[UInt8[np.ndarray, "n s s 3"]]:
    """Map what each file holds and draw what is missing; each file is stored as soon as it is complete."""
    drawn = []
    for path, request in zip(paths, requests, strict=True):
        stored = load_images(path, request.size)
        drawn.append(np.empty((0, request.size, request.size, 3), np.uint8) if stored is None else stored)
    short = [place for place, request in enumerate(requests) if len(drawn[place]) < request.last]
    rest = [requests[place]._replace(first=len(drawn[place])) for place in short]
    writable = True
    for place, new in zip(short, draw_all(rest, progress=progress), strict=True):
        drawn[place] = np.concatenate([drawn[place], new])
        try:
            if writable:
                drawn[place] = store_images(paths[place], drawn[place])
        except OSError as error:
            writable = False
            warn_not_kept(paths[place].parent, "avatars", error)
    return drawn
