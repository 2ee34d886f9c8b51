"""Scan orders: ways to put the tokens of a square grid into a sequence.

Shape letters: L = side * side tokens of an image.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from aimamba.config import check

ScanOrder = Int64[np.ndarray, " l"]
"""A permutation of the grid positions: the raster index of the token at each position of the sequence."""


def scan_order(name: str, side: int) -> ScanOrder:
    """Return a scan order by its name.

    ``raster`` goes row by row, ``column`` column by column, ``snake`` row by row with every other row reversed, and
    ``hilbert`` along Hilbert's curve. In the last two, consecutive tokens are neighbours in the grid.

    Args:
        name: One of ``SCAN_ORDERS``.
        side: Rows and columns of the grid.

    Returns:
        A permutation of 0 ... L - 1. Tokens in raster order indexed by it are the sequence.

    Raises:
        ConfigError: There is no such order, or Hilbert's curve does not fit the grid.
    """
    check(name in SCAN_ORDERS, f"order must be one of {', '.join(SCAN_ORDERS)}, got {name!r}")
    return SCAN_ORDERS[name](side)


def inverse_order(order: ScanOrder) -> ScanOrder:
    """Return the position in the sequence of each raster index, which undoes the order."""
    return np.argsort(order)


def _raster(side: int) -> ScanOrder:
    return np.arange(side * side)


def _snake(side: int) -> ScanOrder:
    grid = _raster(side).reshape(side, side).copy()
    grid[1::2] = grid[1::2, ::-1]
    return grid.ravel()


def _column(side: int) -> ScanOrder:
    return _raster(side).reshape(side, side).T.ravel()


def _hilbert(side: int) -> ScanOrder:
    """Join four copies of the curve of half the side; the first and the last are turned so that the ends meet."""
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


SCAN_ORDERS: dict[str, Callable[[int], ScanOrder]] = {
    "raster": _raster,
    "snake": _snake,
    "column": _column,
    "hilbert": _hilbert,
}
