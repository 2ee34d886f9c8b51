"""Pictures as codes: what the generator trains on.

Shape letters: n pictures, v views of each, L codes of a view.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt16
from torch import Tensor

from aimamba.config import check
from aimamba.data.order import Order
from aimamba.data.pictures import Pictures
from aimamba.data.sheets import to_float
from aimamba.models import VQModel

_LARGEST_CODEBOOK = 1 << 16


class CodeBatch(NamedTuple):
    """Codes in raster order with their classes."""

    codes: Int[Tensor, "b l"]
    labels: Int[Tensor, " b"]


class CodeSet:
    """Codes of a set of pictures, in one or more views of each, in memory or mapped from files.

    Attributes:
        shards: Runs of pictures, each (some, v, L) with two bytes a code.
        labels: Class of each picture, (n,).
        views: Number of views of a picture.
    """

    def __init__(
        self,
        codes: UInt16[np.ndarray, "n v l"] | Sequence[UInt16[np.ndarray, "_ v l"]],
        labels: Int64[np.ndarray, " n"],
    ) -> None:
        """Take codes in one piece or in shards of any length."""
        self.shards = [codes] if isinstance(codes, np.ndarray) else list(codes)
        self.labels = labels
        self.views = self.shards[0].shape[1]
        self._ends = np.cumsum([len(shard) for shard in self.shards])

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.labels)

    def take(self, indices: Sequence[int], views: Sequence[int]) -> Int[Tensor, "b l"]:
        """Codes of some pictures, each in one of its views."""
        rows = []
        for index, view in zip(indices, views, strict=True):
            number = int(np.searchsorted(self._ends, index, side="right"))
            rows.append(self.shards[number][index - self._ends[number], view])
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def batches(self, *, batch_size: int, seed: int, start: int = 0) -> Iterator[CodeBatch]:
        """Give shuffled batches for ever; the example at a position is a function of ``(seed, position)`` alone."""
        order = Order(len(self), seed)
        while True:
            positions = range(start, start + batch_size)
            indices = [order.index(position) for position in positions]
            views = [int(order.generator(position).integers(self.views)) for position in positions]
            yield CodeBatch(self.take(indices, views), torch.from_numpy(self.labels[indices]))
            start += batch_size


@torch.no_grad()
def encode_pictures(
    tokenizer: VQModel,
    pictures: Pictures,
    *,
    flip: bool = False,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> CodeSet:
    """Encode the centre view of every picture once, and its mirror image where asked.

    Args:
        tokenizer: On the device where the work should be done.
        pictures: What to encode.
        flip: Add the mirror image as a second view.
        batch_size: Pictures at once.
        progress: Called with (pictures done, pictures in all).

    Raises:
        ConfigError: The codebook has more codes than two bytes can hold.
    """
    size = tokenizer.config.codebook_size
    check(size <= _LARGEST_CODEBOOK, f"codes are kept in two bytes: at most {_LARGEST_CODEBOOK} codes, got {size}")
    device, dtype = tokenizer.codebook.device, tokenizer.codebook.dtype
    parts = []
    for start in range(0, len(pictures), batch_size):
        stop = min(start + batch_size, len(pictures))
        stacked = np.stack([pictures.picture(index, None) for index in range(start, stop)])
        images = to_float(torch.from_numpy(stacked).permute(0, 3, 1, 2)).to(device, dtype)
        views = [images, images.flip(-1)] if flip else [images]
        codes = torch.stack([tokenizer.encode(view).flatten(1) for view in views], dim=1)  # (B, v, L)
        parts.append(codes.cpu().numpy().astype(np.uint16))
        if progress is not None:
            progress(stop, len(pictures))
    return CodeSet(np.concatenate(parts), np.asarray(pictures.labels, dtype=np.int64))
