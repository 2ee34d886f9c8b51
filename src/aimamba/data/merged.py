"""Several sets of images as one."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import UInt8

from aimamba.data.image_files import ImageFiles
from aimamba.data.images import Images
from aimamba.errors import DataError


class MergedImages(Images):
    """Images of several sets, one set after the other.

    Labels are kept where every set has them and the names of the classes are the same.

    Attributes:
        broken: What is wrong with files that were left out.
    """

    def __init__(self, sets: Sequence[Images]) -> None:
        """Join sets; images that two of them begin with are reported as a warning.

        Raises:
            DataError: A set is given twice, has no images, or has images of another size.
        """
        first = sets[0]
        self.name = " + ".join(part.name for part in sets)
        self.size = first.size
        for index, part in enumerate(sets):
            if not len(part):
                raise DataError(f"{part.name}: holds no images; give it alone, or leave it out")
            if part.size != self.size:
                raise DataError(
                    f"{first.name} has images of {self.size} x {self.size} pixels, {part.name} of {part.size} x "
                    f"{part.size}: give sets of one size (--size scales folders)"
                )
            if any(part.name == other.name for other in sets[:index]):
                raise DataError(f"{part.name} is given twice: its images would count double; give it once")
        self._sets = tuple(sets)
        self._ends = np.cumsum([len(part) for part in sets])
        same = all(part.labels is not None and part.class_names == first.class_names for part in sets)
        self.class_names = first.class_names if same else ()
        self.labels = np.concatenate([part.labels for part in sets]) if same else None
        self.broken = tuple(reason for part in sets if isinstance(part, ImageFiles) for reason in part.broken)
        self._warn_of_equal_images()

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self._ends[-1])

    @property
    def identity(self) -> dict[str, Any] | None:
        """Those of the sets."""
        parts = [part.identity for part in self._sets]
        return None if None in parts else {"merged": parts}

    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Return one image; ``rng`` is passed on.

        Raises:
            IndexError: ``index`` is out of range.
        """
        self._check(index)
        number = self._number(index)
        return self._sets[number].image(index - (int(self._ends[number - 1]) if number else 0), rng)

    def units(self, batch_size: int) -> list[range]:
        """Return the indices of the images of every batch, none of which reaches over two sets."""
        return [
            range(end - len(part) + unit.start, end - len(part) + unit.stop)
            for part, end in zip(self._sets, self._ends.tolist(), strict=True)
            for unit in part.units(batch_size)
        ]

    def read(self, units: Iterable[range]) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield the images of some of the ``units`` in rising order."""
        for number, group in groupby(units, key=lambda unit: self._number(unit.start)):
            first = int(self._ends[number]) - len(self._sets[number])
            yield from self._sets[number].read(range(unit.start - first, unit.stop - first) for unit in group)

    def _number(self, index: int) -> int:
        """Return the number of the set that an image is in."""
        return int(np.searchsorted(self._ends, index, side="right"))

    def _warn_of_equal_images(self) -> None:
        known: dict[bytes, str] = {}
        for part in self._sets:
            other = known.setdefault(part.image(0).tobytes(), part.name)
            if other != part.name:
                warnings.warn(
                    f"{other} and {part.name} begin with the same image: were they sampled with the same --seed?",
                    stacklevel=3,
                )
