"""Orders in which the codes of a square grid can be put into a sequence.

Shape letters: L = side * side codes of an image.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from aimamba.config import check

Order = Int64[np.ndarray, " l"]


def grid_order(name: str, side: int) -> Order:
    """Raster index of the code at each place of the sequence.

    ``raster`` goes row by row, ``column`` column by column, ``snake`` row by row and every other one backwards,
    ``hilbert`` along Hilbert's curve. Along the last two every code is a neighbour of the one before it.

    Args:
        name: One of ``ORDERS``.
        side: Rows and columns of the grid.

    Returns:
        A permutation of 0 ... L - 1. Codes in raster order indexed by it are the sequence.

    Raises:
        ConfigError: There is no such order, or Hilbert's curve does not fit the grid.
    """
    check(name in ORDERS, f"order must be one of {', '.join(ORDERS)}, got {name!r}")
    return ORDERS[name](side)


def inverse(order: Order) -> Order:
    """Place in the sequence of each raster index: what undoes an order."""
    return np.argsort(order)


def _raster(side: int) -> Order:
    return np.arange(side * side)


def _snake(side: int) -> Order:
    grid = _raster(side).reshape(side, side).copy()
    grid[1::2] = grid[1::2, ::-1]
    return grid.ravel()


def _column(side: int) -> Order:
    return _raster(side).reshape(side, side).T.ravel()


def _hilbert(side: int) -> Order:
    """Four copies of the curve of half the side: the first and the last turned, so that the ends meet."""
    check(
        side >= 1 and side & (side - 1) == 0, f"order 'hilbert' needs a grid whose side is a power of two, got {side}"
    )
    rows, columns = np.zeros(1, np.int64), np.zeros(1, np.int64)
    half = 1
    while half < side:
        quarters = [
            (columns, rows),
            (rows, columns + half),
            (rows + half, columns + half),
            (2 * half - 1 - columns, half - 1 - rows),
        ]
        rows = np.concatenate([quarter[0] for quarter in quarters])
        columns = np.concatenate([quarter[1] for quarter in quarters])
        half *= 2
    return rows * side + columns


ORDERS: dict[str, Callable[[int], Order]] = {"raster": _raster, "snake": _snake, "column": _column, "hilbert": _hilbert}
