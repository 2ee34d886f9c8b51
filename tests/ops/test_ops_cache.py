"""Caches with one slot for every token."""

import pytest
import torch

from aimamba.ops.cache import common, seen, write


@pytest.mark.parametrize("axis", [1, 2])
def test_a_number_writes_the_same_as_equal_positions(axis):
    shape, x = [3, 4, 4], torch.randn(3, 4, dtype=torch.float64)
    one, each = torch.zeros(shape), torch.zeros(shape)
    write(one, x, 2, axis=axis)
    write(each, x, torch.tensor([2, 2, 2]), axis=axis)
    assert torch.equal(one, each)
    assert torch.equal(one.select(axis, 2), x.float())
    assert int(one.count_nonzero()) == x.numel()


def test_rows_write_to_their_own_slots():
    cache, x = torch.zeros(2, 5, 3, 4), torch.randn(2, 5, 4)
    write(cache, x, torch.tensor([0, 2]), axis=2)
    assert torch.equal(cache[0, :, 0], x[0])
    assert torch.equal(cache[1, :, 2], x[1])
    assert int(cache.count_nonzero()) == x.numel()


def test_a_common_position_is_a_number():
    assert common(torch.tensor([7, 7])) == 7
    assert common(torch.tensor([0])) == 0
    differing = torch.tensor([3, 5, 4])
    assert common(differing) is differing
    assert seen(differing) == seen(5) == 6
