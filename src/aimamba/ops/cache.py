"""Caches with one slot for every token of a row. Rows may be at different positions, or all at the same one."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

Position = Int[Tensor, " b"] | int
"""Tokens that each row has consumed; a plain number if it is the same for all rows, which is faster."""


def common(position: Int[Tensor, " b"]) -> Position:
    """Return ``position`` as a number if it is the same for all rows, else unchanged. Waits for a device."""
    lowest, highest = torch.stack(position.aminmax()).tolist()
    return int(lowest) if lowest == highest else position


def seen(position: Position) -> int:
    """Return the number of slots in use once every row has written. Waits for a device that holds ``position``."""
    return (position if isinstance(position, int) else int(position.max())) + 1


def write(cache: Shaped[Tensor, "b ..."], x: Shaped[Tensor, "b ..."], position: Position, *, axis: int) -> None:
    """Write the values of one token a row into ``cache``.

    Args:
        cache: Has one axis more than ``x``. Updated in place, in its own dtype.
        x: Values of the token, for each row.
        position: Slot to write, for each row.
        axis: Axis of the slots in ``cache``.
    """
    if isinstance(position, int):
        cache.select(axis, position).copy_(x)
    else:
        rows = torch.arange(len(cache), device=cache.device)
        cache.movedim(axis, 1)[rows, position] = x.to(cache.dtype)
