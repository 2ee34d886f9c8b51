"""Which images are trained on and which are held out: decided by each file's name alone."""

import hashlib
import unicodedata
from collections.abc import Hashable, Sequence
from typing import Literal

Split = Literal["train", "held-out", "held-out-names", "held-out-pairs", "all"]

FOLDER_SPLITS = ("train", "held-out", "all")
"""Splits of a folder; the others are for some named sets."""

HELD_OUT = 0.05
"""Share of a folder's images that is held out."""


def hash_fraction(name: str) -> float:
    """Return a number in [0, 1) that depends on ``name`` alone, uniform over names, the same on every machine.

    Args:
        name: Path of a file relative to the data set, with ``/`` between folders. Composed and decomposed accents are
            equal, so a folder copied from a Mac splits as it did there.
    """
    name = unicodedata.normalize("NFC", name)
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def select(names: Sequence[str], split: Split, fraction: float) -> list[int]:
    """Choose the images of a split.

    An image is held out when the ``hash_fraction`` of its name is below ``fraction``. As this depends on no other
    image, files may be added or removed without moving the rest between the splits. Only where one side of two or more
    images would be empty (a handful of files), the closest image moves: the one with the smallest hash is held out, or
    the one with the largest is trained on. A single image is trained on.

    Args:
        names: Relative paths of all images.
        split: Which images to return.
        fraction: Share of images to hold out, in (0, 1).

    Returns:
        Increasing positions in ``names``. Train and held-out are disjoint, and together they are all.
    """
    if split == "all":
        return list(range(len(names)))
    hashes = [hash_fraction(name) for name in names]
    threshold = fraction
    if len(hashes) > 1:
        threshold = min(max(threshold, _just_above(min(hashes))), max(hashes))
    elif hashes:
        threshold = 0.0
    return [index for index, value in enumerate(hashes) if (value < threshold) == (split == "held-out")]


def first_of_each(
    chosen: Sequence[int], names: Sequence[str], classes: Sequence[Hashable], per_class: int
) -> list[int]:
    """Keep the images of each class that have the smallest hashes.

    Args:
        chosen: Positions in ``names``, increasing.
        names: Relative paths of all images.
        classes: Class of every image.
        per_class: At most this many of each class.

    Returns:
        The positions that are kept, increasing.
    """
    taken: dict[Hashable, int] = {}
    kept = []
    for index in sorted(chosen, key=lambda index: hash_fraction(names[index])):
        count = taken.get(classes[index], 0)
        if count < per_class:
            taken[classes[index]] = count + 1
            kept.append(index)
    return sorted(kept)


def _just_above(value: float) -> float:
    return value + 2.0**-53
