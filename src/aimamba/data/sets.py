"""What the rest of the package knows about a data set: square images with labels, opened by one name."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from aimamba.config import check
from aimamba.data.avatars import STYLES, Avatars
from aimamba.data.fashion_mnist import FashionMNIST
from aimamba.data.folder import Crop, ImageFolder
from aimamba.data.splits import Split
from aimamba.errors import DataError, suggest

# How many avatars of each style make a data set, where nobody says.
AVATARS_PER_CLASS = {"train": 1000, "held-out": 100}

_NAMES = ("avatars", "fashion-mnist")


@runtime_checkable
class ImageSet(Protocol):
    """Labelled square images, each at hand by its index."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""

    @property
    def labels(self) -> Int64[np.ndarray, "n"]:
        """Class index of every image."""

    @property
    def size(self) -> int:
        """Side of every image in pixels."""

    def __len__(self) -> int:
        """How many images there are."""

    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Image ``index``: a random view (crop, flip) drawn from ``rng``; without it the centre view, unmirrored."""


def open_images(
    source: str,
    *,
    size: int,
    split: Split,
    crop: Crop = "center",
    flip: bool = False,
    per_class: int | None = None,
    skip_per_class: int = 0,
    upscale: bool = False,
    max_broken: int | None = None,
    strict: bool = False,
    progress: bool = False,
) -> ImageSet:
    """Open a data set by its name.

    Args:
        source: ``"avatars"`` for the ten avatar styles that come with the package, ``"avatars:planets,sprouts"`` for
            chosen ones, ``"fashion-mnist"`` or ``"fashion-mnist:FOLDER"`` for its official files, or the path of a
            folder with a sub-folder for each class. (A folder that is itself called ``avatars`` is ``"./avatars"``.)
        size: Side of the images in pixels.
        split: ``"train"`` or ``"held-out"``; a folder also has ``"all"``.
        crop: What a random view of an image from a folder shows; the named sets are always shown whole.
        flip: Whether a random view is mirrored half of the time.
        per_class: At most this many images of each class; by default every one there is, and of the avatars 1,000 to
            train on or 100 held out.
        skip_per_class: Avatars of each class to pass over first; other data has no more than it has.
        upscale: Enlarge a folder's images that are smaller than ``size`` instead of refusing them.
        max_broken: How many broken files of a folder to pass over; by default 1 %, but at least 10.
        strict: Refuse a folder's first broken file instead of passing it over with a warning.
        progress: Show a bar on stderr while avatars are drawn for the first time.

    Raises:
        ConfigError: A setting is out of range.
        DataError: The source cannot be used; the message says why.
    """
    name, colon, chosen = source.partition(":")
    if name == "avatars":
        styles = tuple(style.strip() for style in chosen.split(",") if style.strip()) if colon else STYLES
        amount = AVATARS_PER_CLASS.get(split, 1) if per_class is None else per_class
        return Avatars(size, split, amount, styles, skip=skip_per_class, flip=flip, progress=progress)
    check(skip_per_class == 0, f"skip_per_class is for avatars alone, got {skip_per_class} for {source}")
    if name == "fashion-mnist":
        return FashionMNIST(chosen or None, size=size, split=split, per_class=per_class, flip=flip)
    if not Path(source).expanduser().exists() and suggest(name, _NAMES):
        raise DataError(f"{source}: there is no such folder{suggest(name, _NAMES)}")
    return ImageFolder(
        source,
        size=size,
        split=split,
        crop=crop,
        flip=flip,
        per_class=per_class,
        upscale=upscale,
        max_broken=max_broken,
        strict=strict,
    )
