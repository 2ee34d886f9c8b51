"""The order of examples: a function of (seed, position) alone."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimamba.data.order import ShuffledOrder


def places(order, positions):
    return [order.index(position) for position in positions]


@given(st.integers(1, 50), st.integers(0, 2**40), st.integers(0, 10**9))
def test_every_epoch_is_a_permutation(count, seed, epoch):
    order = ShuffledOrder(count, seed)
    assert sorted(places(order, range(epoch * count, (epoch + 1) * count))) == list(range(count))


def test_epochs_and_seeds_differ():
    orders = {
        tuple(places(ShuffledOrder(30, seed), range(30 * epoch, 30 * epoch + 30)))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


@given(st.integers(0, 1000))
def test_positions_may_come_in_any_order(shuffle):
    positions = list(range(40))
    expected = places(ShuffledOrder(7, 3), positions)
    random.Random(shuffle).shuffle(positions)
    order = ShuffledOrder(7, 3)
    assert places(order, positions) == [expected[position] for position in positions]


@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 10**12])
def test_resuming(start):
    whole = places(ShuffledOrder(7, 3), range(start, start + 20))
    assert places(ShuffledOrder(7, 3), range(start + 11, start + 20)) == whole[11:]


def test_a_lone_example():
    assert places(ShuffledOrder(1, 0), range(5)) == [0] * 5


def test_the_view_belongs_to_the_position():
    order = ShuffledOrder(7, 3)
    views = [order.generator(position).integers(2**60) for position in range(30)]
    assert len(set(views)) == 30, "also where the example is the same"
    assert ShuffledOrder(99, 3).generator(12).integers(2**60) == views[12]
    assert ShuffledOrder(7, 4).generator(12).integers(2**60) != views[12]
    order.index(5)
    assert order.generator(12).integers(2**60) == views[12]


def test_it_never_changes():
    # A run that was begun with an older version must go on with the same examples.
    order = ShuffledOrder(10, 0)
    assert places(order, range(20)) == [1, 7, 9, 0, 6, 4, 5, 8, 2, 3, 2, 0, 3, 1, 9, 8, 4, 7, 6, 5]
    assert [int(order.generator(position).integers(1000)) for position in range(5)] == [484, 400, 695, 520, 54]
