"""Batches of samples one after the other, without a pause of the device between them.

While the device generates a batch, the images of the one before it move to the host, on a stream of their own. They
are handed over between two tokens, as soon as they are there.

Shape letters: B images, L tokens of an image, s side of an image.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from aimamba.generation.fast_decoder import check_finite


class Finished(NamedTuple):
    """Samples on the host.

    Attributes:
        codes: Their tokens, (B, L).
        images: 8-bit RGB, (B, s, s, 3).
    """

    codes: Int[Tensor, "b l"]
    images: UInt8[Tensor, "b s s 3"]


class Fetched:
    """Tensors on their way to the host."""

    def __init__(self, sources: list[Tensor], copies: list[Tensor], arrived: torch.cuda.Event | None) -> None:
        self._sources = sources  # kept until they have been read
        self._copies = copies
        self._arrived = arrived

    def ready(self) -> bool:
        """Return whether they are there. Does not wait."""
        return self._arrived is None or self._arrived.query()

    def wait(self) -> list[Tensor]:
        """Wait until they are there, and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        self._sources = []
        return self._copies


class Fetcher:
    """Copies tensors to pinned memory of the host, on a stream beside the one that computes.

    On devices other than CUDA it copies at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fetch(self, *tensors: Tensor) -> Fetched:
        """Begin to copy some tensors of the device."""
        if self._stream is None:
            return Fetched([], [tensor.cpu() for tensor in tensors], None)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return Fetched(list(tensors), copies, arrived)

    def beside(self) -> AbstractContextManager[object]:
        """Let what is launched inside not queue behind the next batch."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


@dataclass
class _Pending:
    """A batch whose tokens and images are queued."""

    run: Iterator[Tensor]  # its tokens: all have been yielded, and the logits are still to be checked
    fetched: Fetched

    def finish(self, fetcher: Fetcher) -> Finished:
        codes, images, finite = self.fetched.wait()
        with fetcher.beside():
            for _ in self.run:
                pass
        check_finite(finite)
        return Finished(codes, images)


def finished_batches(
    runs: Iterable[Iterator[Int[Tensor, "b t"]]],
    length: int,
    decode: Callable[[Int[Tensor, "b l"]], tuple[UInt8[Tensor, "b s s 3"], Tensor]],
    fetcher: Fetcher,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Finished]:
    """Generate and decode batches in order; hand each over when its images are on the host.

    The host never waits for a batch before the next one is queued, so the device is never without work.

    Args:
        runs: For every batch, what ``generate`` returns. The next one is taken when the tokens of this are queued.
        length: Tokens of an image (L).
        decode: Queues the conversion of codes to 8-bit images, and returns them with ``Decoded.finite``.
        fetcher: Moves the results to the host.
        progress: Called after every step with the number of tokens that it generated.

    Yields:
        The batches, in order.

    Raises:
        CheckpointError: Logits or images of a batch contain NaN or infinity, as with damaged weights.
    """
    pending: _Pending | None = None
    for run in runs:
        for codes in run:
            if progress is not None:
                progress(len(codes))
            if pending is not None and pending.fetched.ready():
                yield pending.finish(fetcher)
                pending = None
            if codes.shape[1] == length:
                break  # the rest of the run waits for its logits, to check them
        images, finite = decode(codes)
        if pending is not None:
            yield pending.finish(fetcher)
        pending = _Pending(run, fetcher.fetch(codes, images, finite))
        if pending.fetched.ready():
            yield pending.finish(fetcher)
            pending = None
    if pending is not None:
        yield pending.finish(fetcher)
