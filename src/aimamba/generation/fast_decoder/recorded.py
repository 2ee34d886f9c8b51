"""Decoding with a recorded decoder: one recording for full slices, and the rest as it comes.

Shape letters: B batch, h w code grid, H W image.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.generation.capture import Record, Run


class _Recording(NamedTuple):
    codes: Tensor  # (S, h, w), which the recording reads
    run: Run


class RecordedDecoder:
    """Decodes slices of a fixed size by a recording, and a smaller last slice with the decoder itself.

    A recording is made for the first full slice, and again when the grid of codes changes; only the last one is kept.
    Threads take turns, because a recording has one place for its codes.

    Args:
        decode: Maps codes (b, h, w) to images (b, 3, H, W); its weights stay where they are.
        record: Converts a computation on fixed tensors to one that repeats it, such as ``capture``.
        size: Images of a full slice (S).
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], record: Record, size: int) -> None:
        self._decode = decode
        self._record = record
        self._size = size
        self._recording: _Recording | None = None
        self._lock = threading.Lock()

    def __call__(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 H W"]:
        """Convert codes to images. Nothing here waits for the device."""
        slices = []
        for part in codes.split(self._size):
            if len(part) == self._size:
                with self._lock:
                    recording = self._recorded(part)
                    recording.codes.copy_(part)
                    slices.append(recording.run().clone())  # the recording's own images are overwritten by its next run
            else:
                slices.append(self._decode(part))
        return slices[0] if len(slices) == 1 else torch.cat(slices)

    def _recorded(self, part: Tensor) -> _Recording:
        if self._recording is None or self._recording.codes.shape != part.shape:
            self._recording = None  # its memory is free before another is made
            # In inference mode it would be of no use to callers outside of it.
            with torch.inference_mode(False), torch.no_grad():
                codes = torch.empty_like(part, memory_format=torch.contiguous_format).copy_(part)
                self._recording = _Recording(codes, self._record(lambda: self._decode(codes)))
        return self._recording
