"""Move the next batch to the device while the device works on this one."""

from collections.abc import Iterator
from typing import Generic

import torch

from aimamba.train.task import Batch, map_tensors, to_device


class Ahead(Generic[Batch]):
    """Batches on the device. On CUDA, ``fetch`` begins to move the next one, from pinned memory on a stream of its own.

    Call ``fetch`` when a step is queued and before waiting for it. Elsewhere ``fetch`` does nothing.

    Args:
        batches: The batches, anywhere.
        device: Where they are needed.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: Batch | None = None
        self._error: Exception | None = None

    def __iter__(self) -> "Ahead[Batch]":
        return self

    def __next__(self) -> Batch:
        """Return the next batch; an error in ``fetch`` is raised here."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        batch, self._next = self._next, None
        if batch is None:
            batch = self._move(next(self._batches))
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in batch:
                tensor.record_stream(current)  # its memory is not used again before this stream is done with it
        return batch

    def fetch(self) -> None:
        """Begin to move the next batch, unless that has been done."""
        if self._stream is None or self._next is not None or self._error is not None:
            return
        try:
            self._next = self._move(next(self._batches))
        except Exception as error:  # belongs to the step that needs the batch
            self._error = error

    def _move(self, batch: Batch) -> Batch:
        if self._stream is None:
            return to_device(batch, self._device)
        batch = map_tensors(batch, lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())
        with torch.cuda.stream(self._stream):
            return to_device(batch, self._device)
