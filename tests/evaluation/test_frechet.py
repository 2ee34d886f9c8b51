"""The Fréchet distance against the matrix root that ADM's evaluator takes."""

import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from aimamba.errors import DataError
from aimamba.evaluation.frechet import frechet_distance
from aimamba.evaluation.statistics import Gaussian, Moments


def gaussian(rows):
    moments = Moments(rows.shape[1])
    moments.add(torch.from_numpy(rows))
    return moments.gaussian()


def features(n, d, *, seed, shift=0.0):
    """Return features that are not negative and are correlated, as those of a network."""
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / d**0.5 + shift, 0)


def reference(one, other):
    m1, m2 = one.mean(axis=0), other.mean(axis=0)
    s1, s2 = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    with warnings.catch_warnings(action="ignore"):  # scipy warns of singular matrices
        root = sqrtm(s1 @ s2).real
    return (m1 - m2) @ (m1 - m2) + np.trace(s1) + np.trace(s2) - 2 * np.trace(root)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 300, 24), (60, 40, 24), (10, 200, 24), (9, 12, 40), (2, 3, 40)])
def test_it_equals_the_formula_with_the_matrix_root(n, m, d):
    one, other = features(n, d, seed=1), features(m, d, seed=2, shift=0.3)
    assert frechet_distance(gaussian(one), gaussian(other)) == pytest.approx(reference(one, other), rel=1e-6)


@pytest.mark.parametrize("n", [5, 100])
def test_a_set_is_at_no_distance_from_itself(n):
    one = gaussian(features(n, 20, seed=0))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_it_is_symmetric_and_sees_a_shift():
    one, other = gaussian(features(50, 8, seed=0)), gaussian(features(70, 8, seed=1))
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-9)
    moved = Gaussian(one.mean + 2, one.covariance)
    assert frechet_distance(one, moved) == pytest.approx(8 * 4, rel=1e-9)


def test_no_variance_at_all():
    still = Gaussian(torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64))
    assert frechet_distance(still, still) == 0


def test_features_of_two_networks_are_refused():
    with pytest.raises(DataError, match="features of 8 numbers cannot be compared with features of 9"):
        frechet_distance(gaussian(features(9, 8, seed=0)), gaussian(features(9, 9, seed=0)))
