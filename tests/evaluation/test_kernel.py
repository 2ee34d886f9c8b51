"""The kernel distance against sums over pairs."""

from itertools import combinations

import numpy as np
import pytest
import torch

from aimamba.errors import DataError
from aimamba.evaluation.kernel import kernel_distance, squared_discrepancy


def features(n, d=5, seed=0, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (n, d)).astype(np.float32))


def by_pairs(x, y):
    def kernel(u, v):
        return (float(u.double() @ v.double()) / len(u) + 1) ** 3

    within = [
        np.mean([kernel(u, v) for i, u in enumerate(rows) for j, v in enumerate(rows) if i != j]) for rows in (x, y)
    ]
    return sum(within) - 2 * np.mean([kernel(u, v) for u in x for v in y])


def test_it_is_the_sum_over_pairs():
    x, y = features(7), features(9, seed=1, shift=0.5)
    assert squared_discrepancy(x, y) == pytest.approx(by_pairs(x, y), rel=1e-5)


def test_it_has_no_bias():
    x, y = features(6), features(5, seed=1, shift=0.5)
    some = [
        squared_discrepancy(x[list(i)], y[list(j)])
        for i in combinations(range(6), 3)
        for j in combinations(range(5), 2)
    ]
    assert np.mean(some) == pytest.approx(squared_discrepancy(x, y), rel=1e-5)  # from all subsets as from the whole


def test_mean_and_deviation_over_subsets():
    x, y = features(40), features(30, seed=1, shift=0.3)
    found = kernel_distance(x, y, subsets=50, subset_size=8, seed=3)
    generator, values = torch.Generator().manual_seed(3), []
    for _ in range(50):
        some = [rows[torch.randperm(len(rows), generator=generator)[:8]] for rows in (x, y)]
        values.append(squared_discrepancy(*some))
    assert found == (pytest.approx(np.mean(values)), pytest.approx(np.std(values)), 8)
    assert abs(found.mean - squared_discrepancy(x, y)) < 3 * found.std / 50**0.5


def test_subsets_of_small_sets_are_half_of_them():
    assert kernel_distance(features(9), features(30), subsets=1).subset_size == 4
    assert kernel_distance(features(2), features(2), subsets=1).subset_size == 2


def test_too_few():
    with pytest.raises(DataError, match="at least 2 images in each set, got 1 and 5"):
        kernel_distance(features(1), features(5))
