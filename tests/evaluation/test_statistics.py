"""Streaming mean and covariance."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from aimamba.errors import DataError
from aimamba.evaluation.statistics import Moments

ROWS = np.random.default_rng(0).normal(3, 2, (50, 7)).astype(np.float32)


def moments(rows, size=50):
    found = Moments(7)
    for start in range(0, len(rows), size):
        found.add(torch.from_numpy(rows[start : start + size]))
    return found


def assert_is_of(found, rows):
    mean, covariance = found.gaussian()
    assert found.count == len(rows)
    assert_allclose(mean.numpy(), rows.astype(np.float64).mean(axis=0), rtol=1e-12)
    assert_allclose(covariance.numpy(), np.cov(rows, rowvar=False), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_it_equals_numpy(size):
    assert_is_of(moments(ROWS, size), ROWS)


@given(st.lists(st.integers(0, 50), max_size=6).map(sorted))
def test_batches_of_any_sizes_are_the_whole(cuts):
    whole = Moments(7)
    for first, last in zip([0, *cuts], [*cuts, 50], strict=True):
        whole.add(torch.from_numpy(ROWS[first:last]))
    assert_is_of(whole, ROWS)


def test_no_precision_is_lost_far_from_zero():
    found = moments(ROWS.astype(np.float64) + 1e6, 5).gaussian()
    assert_allclose(found.covariance.numpy(), np.cov(ROWS, rowvar=False), rtol=1e-7)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images(count):
    with pytest.raises(DataError, match=f"at least 2 images, got {count}"):
        moments(ROWS[:count]).gaussian()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(bad):
    rows = ROWS.copy()
    rows[3, 2] = bad
    with pytest.raises(DataError, match="features of 1 of 50 images are NaN or infinite"):
        moments(rows)
