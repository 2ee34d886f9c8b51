"""Which images are trained on and which are held out: decided by each file's name, not by what lies beside it."""

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Literal

Split = Literal["train", "held-out", "all"]


def draw(name: str) -> float:
    """The number in [0, 1) that belongs to a name: uniform, the same on every machine and in every run.

    Args:
        name: Path of a file relative to the data set, with ``/`` between folders. Composed and decomposed accents count
            as equal, so a folder copied from a Mac splits as it did there.
    """
    name = unicodedata.normalize("NFC", name)
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def select(names: Sequence[str], split: Split, fraction: float) -> list[int]:
    """Choose the images of a split.

    An image is held out when the ``draw`` of its name is below ``fraction``. Each is judged alone, so files may come
    and go without moving any other across the line. Only where this would leave a side of two or more images empty
    (a handful of files) does the image nearest to the line go over: the smallest draw is held out, or the largest
    trained on. A lone image is trained on.

    Args:
        names: Relative paths of all images.
        split: Which images to return.
        fraction: Share of images to hold out, in (0, 1).

    Returns:
        Increasing positions in ``names``. Train and held-out share none, and together they are all.
    """
    if split == "all":
        return list(range(len(names)))
    draws = [draw(name) for name in names]
    line = fraction
    if len(draws) > 1:
        line = min(max(line, _just_above(min(draws))), max(draws))
    elif draws:
        line = 0.0
    return [index for index, value in enumerate(draws) if (value < line) == (split == "held-out")]


def _just_above(value: float) -> float:
    return value + 2.0**-53
