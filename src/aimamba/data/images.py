"""What all sets of images share: a name, a size, labels, and three ways to read them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8


@runtime_checkable
class ImageSet(Protocol):
    """Labelled square images that can be read in any order: what training and encoding need."""

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
        """Return the number of images."""

    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Return image ``index``: a random view (crop, flip) chosen by ``rng``, or without it the centre view."""


@runtime_checkable
class CaptionedSet(ImageSet, Protocol):
    """Labelled images with captions, of which a generator of images from text learns."""

    @property
    def captioned(self) -> bool:
        """Whether the images have captions."""

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of image ``index``, always the same ones; an image without any has an empty tuple."""


def has_captions(images: ImageSet) -> TypeGuard[CaptionedSet]:
    """Return whether the images of a set have captions."""
    return isinstance(images, CaptionedSet) and images.captioned


class Images(ABC):
    """The base of every set of images that can be opened by name.

    Attributes:
        name: The name that the user gave it.
        size: Side of the images in pixels.
        class_names: Names of the classes; empty where the images have no classes or the classes no names.
        labels: Class index of every image, (n,) int64, or None.
        captioned: Whether the images have captions.
    """

    name: str
    size: int
    class_names: tuple[str, ...]
    labels: Int64[np.ndarray, "n"] | None
    captioned: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def image(self, index: int, rng: np.random.Generator | None = None) -> UInt8[np.ndarray, "s s 3"]:
        """Return image ``index``: a random view chosen by ``rng``, or without it the centre view."""

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of image ``index``, always the same ones; without any it is empty.

        Raises:
            IndexError: ``index`` is out of range.
        """
        self._check(index)
        return ()

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")

    @property
    def identity(self) -> dict[str, Any] | None:
        """Everything that the centre views depend on, as JSON values; None where that is not known.

        Features measured on the images are kept under it.
        """
        return None

    def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """Return the centre views of some images."""
        return np.stack([self.image(index) for index in indices])

    def batches(self, batch_size: int) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield the centre views of all images in order."""
        return self.read(self.units(batch_size))

    def units(self, batch_size: int) -> list[range]:
        """Return the indices of the images of every batch; processes that share the images read whole batches."""
        return split(len(self), batch_size)

    def read(self, units: Iterable[range]) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
        """Yield the centre views of some of the ``units``, in rising order, taking each when it is needed."""
        return map(self.take, units)


def split(count: int, batch_size: int) -> list[range]:
    """Return the indices of ``count`` images in batches; the last may be smaller."""
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
