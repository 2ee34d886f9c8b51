"""Endless batches in an order that depends on (seed, position) alone, so that training resumes exactly."""

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from aimamba.config import check
from aimamba.data.images import ImageSet
from aimamba.data.order import ShuffledOrder
from aimamba.errors import DataError
from aimamba.signals import STOPPING


class Batch(NamedTuple):
    """Images and their classes."""

    images: UInt8[Tensor, "b 3 s s"]
    labels: Int64[Tensor, "b"]


def batches(
    images: ImageSet, *, batch_size: int, seed: int, start: int = 0, workers: int = 0, stride: int | None = None
) -> Iterator[Batch]:
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
        stride: From the first example of a batch to that of the next; by default ``batch_size``. It is larger where
            several processes share the examples.

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
    return _endless(_Examples(images, batch_size, seed), start, workers, batch_size if stride is None else stride)


def _endless(examples: "_Examples", start: int, workers: int, stride: int) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        examples,
        batch_size=None,  # an item is a whole batch, indexed by the position of its first example
        sampler=count(start, stride),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # does not affect the batches; keeps torch's global generator untouched
    )
    told: set[str] = set()
    with _named_workers(workers):
        for made in _started(loader):
            for category, text in made.warnings:
                if text not in told:  # several workers may meet the same broken file
                    told.add(text)
                    warnings.warn(category(text), stacklevel=3)
            if isinstance(made.batch, DataError):
                raise made.batch
            yield made.batch


def _started(loader: "DataLoader[Any]") -> Iterator["_Made"]:
    """Start the workers now, and end them when the iterator is closed."""
    with warnings.catch_warnings(), _signals_held_back():
        warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)  # workers only decode
        batches = iter(loader)
    try:
        yield from batches
    finally:
        if (shutdown := getattr(batches, "_shutdown_workers", None)) is not None:
            shutdown()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block Ctrl-C and its kin. Processes that are started meanwhile inherit that: none reaches them at any moment."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _named_workers(workers: int) -> Iterator[None]:
    """Turn the end of a worker into an error that says what to do."""
    try:
        yield
    except (
        RuntimeError,
        EOFError,
        ConnectionError,
        FileNotFoundError,
    ) as error:  # or while it was sending
        text = str(error)
        if isinstance(error, RuntimeError) and "shared memory" in text:  # what torch says of a bus error
            raise _no_shared_memory(workers) from error
        if isinstance(error, RuntimeError) and not text.startswith("DataLoader worker"):
            raise
        first = " ".join(text.split())[:160] or type(error).__name__
        raise DataError(
            f"a process that decodes images has ended ({first}), perhaps for lack of memory; "
            f"lower data.workers = {workers}, or set it to 0"
        ) from error


def _no_shared_memory(workers: int) -> DataError:
    return DataError(
        "there is no room in /dev/shm for the images that are decoded ahead; make it larger (a container has 64 MB by "
        f"default: docker run --shm-size 8g), lower data.workers = {workers}, or set it to 0"
    )


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ignore Ctrl-C and its kin, which a terminal sends to all: the parent finishes its step, then ends the workers."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


class _Made(NamedTuple):
    """A batch, or the error instead of it, and the warnings of a worker that made it."""

    batch: Batch | DataError
    warnings: tuple[tuple[type[Warning], str], ...] = ()


class _Examples(Dataset[_Made]):
    """Batches, indexed by the position of their first example."""

    def __init__(self, images: ImageSet, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self._images = images
        self._order = ShuffledOrder(len(images), seed)

    def __getitem__(self, start: int) -> _Made:
        """Make a batch. Errors and a worker's warnings are returned: torch would wrap or lose them."""
        worker = get_worker_info()
        if worker is None:
            return _Made(self._make(start))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            batch = self._make(start)
        if isinstance(batch, Batch):
            try:
                for tensor in batch:
                    tensor.share_memory_()  # later, in torch's thread, the parent would wait for ever if it fails
            except RuntimeError:
                batch = _no_shared_memory(worker.num_workers)
        return _Made(batch, tuple((warning.category, str(warning.message)) for warning in caught))

    def _make(self, start: int) -> Batch | DataError:
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
