"""Endless batches in an order that depends on (seed, position) alone, so that training resumes exactly."""

from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aimamba.config import check
from aimamba.data.images import ImageSet
from aimamba.data.order import ShuffledOrder
from aimamba.errors import DataError


class Batch(NamedTuple):
    """Images and their classes."""

    images: UInt8[Tensor, "b 3 s s"]
    labels: Int64[Tensor, "b"]


def batches(images: ImageSet, *, batch_size: int, seed: int, start: int = 0, workers: int = 0) -> Iterator[Batch]:
    """Yield batches of shuffled images without end.

    The example at global position ``p`` is a pure function of ``(seed, p)``: epoch ``p // n`` is a permutation of the n
    images, and the random view of each example has its own generator. So a run that stopped after ``p`` examples
    continues with ``start=p`` as if it had never stopped, with any number of workers and even with another batch size.
    A batch may span two epochs; none is short.

    Args:
        images: At least one image.
        batch_size: Examples in a batch, B.
        seed: Of the order and the views.
        start: Position of the first example.
        workers: Processes that decode ahead; 0 decodes in this process.

    Yields:
        ``Batch(images, labels)``: uint8 images (B, 3, size, size) and class indices (B,).

    Raises:
        ConfigError: A number is out of range.
        DataError: There are no images, or too many of them are broken.
    """
    check(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
    check(seed >= 0, f"seed must not be negative, got {seed}")
    check(start >= 0, f"start must not be negative, got {start}")
    check(workers >= 0, f"workers must not be negative, got {workers}")
    if len(images) == 0:
        raise DataError("there are no images to make batches of")
    return _endless(_Examples(images, batch_size, seed), start, workers)


def _endless(examples: "_Examples", start: int, workers: int) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        examples,
        batch_size=None,  # an item is a whole batch, indexed by the position of its first example
        sampler=count(start, examples.batch_size),
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # does not affect the batches; keeps torch's global generator untouched
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


class _Examples(Dataset[Batch | DataError]):
    """Batches, indexed by the position of their first example."""

    def __init__(self, images: ImageSet, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self._images = images
        self._order = ShuffledOrder(len(images), seed)

    def __getitem__(self, start: int) -> Batch | DataError:
        """Make a batch. A DataError is returned: raised in a worker, torch would wrap it in a traceback."""
        indices = []
        images = []
        try:
            for position in range(start, start + self.batch_size):
                index = self._order.index(position)
                indices.append(index)
                images.append(self._images.image(index, self._order.generator(position)))
        except DataError as error:
            return error
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()  # (B, 3, S, S)
        return Batch(stacked, torch.from_numpy(self._images.labels[indices]))


def _as_it_is(batch: Any) -> Any:
    return batch
