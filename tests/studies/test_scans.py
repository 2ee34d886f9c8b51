"""Scan orders are permutations; in two of them consecutive tokens are neighbours."""

import numpy as np
import pytest

from aimamba.errors import ConfigError
from aimamba.studies.scans import SCAN_ORDERS, inverse_order, scan_order


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("name", SCAN_ORDERS)
def test_an_order_is_a_permutation_that_its_inverse_undoes(name, side):
    order = scan_order(name, side)
    assert sorted(order.tolist()) == list(range(side * side))
    codes = np.random.default_rng(0).integers(0, 99, (2, side * side))
    assert np.array_equal(codes[:, order][:, inverse_order(order)], codes)


@pytest.mark.parametrize("side", [2, 4, 8, 16])
@pytest.mark.parametrize("name", ["snake", "hilbert"])
def test_the_next_code_is_a_neighbour_in_the_grid(name, side):
    rows, columns = np.divmod(scan_order(name, side), side)
    assert set(abs(np.diff(rows)) + abs(np.diff(columns))) == {1}


def test_orders_by_hand():
    assert scan_order("raster", 3).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert scan_order("snake", 3).tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    assert scan_order("column", 3).tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert scan_order("hilbert", 2).tolist() == [0, 1, 3, 2]
    assert scan_order("hilbert", 4).tolist() == [0, 4, 5, 1, 2, 3, 7, 6, 10, 11, 15, 14, 13, 9, 8, 12]


def test_refusals():
    with pytest.raises(ConfigError, match="order must be one of raster, snake, column, hilbert, got 'zigzag'"):
        scan_order("zigzag", 4)
    with pytest.raises(ConfigError, match="order 'hilbert' needs a grid whose side is a power of two, got 6"):
        scan_order("hilbert", 6)
