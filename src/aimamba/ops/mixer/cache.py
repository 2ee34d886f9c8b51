"""Memories with a place for every token, whose rows stand each at a place of their own or all at the same."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

Position = Int[Tensor, " b"] | int
"""Tokens that each row has taken before; a number where all have taken as many, which is faster."""


def common(position: Int[Tensor, " b"]) -> Position:
    """``position`` as a number where all rows stand at the same place. Waits for a device."""
    lowest, highest = torch.stack(position.aminmax()).tolist()
    return int(lowest) if lowest == highest else position


def seen(position: Position) -> int:
    """Places that hold something once every row has written. Waits for a device that holds ``position``."""
    return (position if isinstance(position, int) else int(position.max())) + 1


def write(cache: Shaped[Tensor, "b ..."], x: Shaped[Tensor, "b ..."], position: Position, *, axis: int) -> None:
    """Put what belongs to one token into ``cache``.

    Args:
        cache: Has one axis more than ``x``. Updated, in its own dtype.
        x: One value a row.
        position: Where.
        axis: Of the places in ``cache``.
    """
    if isinstance(position, int):
        cache.select(axis, position).copy_(x)
    else:
        rows = torch.arange(len(cache), device=cache.device)
        cache.movedim(axis, 1)[rows, position] = x.to(cache.dtype)
