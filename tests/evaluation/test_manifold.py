"""Precision and recall against loops over images."""

import numpy as np
import pytest
import torch

from aimamba.errors import DataError
from aimamba.evaluation import manifold
from aimamba.evaluation.manifold import precision_recall, squared_distances


def features(n, d=4, seed=0, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (n, d)).astype(np.float32))


def by_loops(samples, reference, k):
    def distance(u, v):
        return float((u.double() - v.double()).square().sum())

    def radius(rows, i):
        return sorted(distance(rows[i], v) for j, v in enumerate(rows) if j != i)[k - 1]

    def covered(points, rows):
        radii = [radius(rows, i) for i in range(len(rows))]
        return np.mean([any(distance(p, v) <= r for v, r in zip(rows, radii, strict=True)) for p in points])

    return covered(samples, reference), covered(reference, samples)


@pytest.mark.parametrize(("n", "m", "k"), [(30, 20, 3), (12, 40, 1), (25, 25, 5), (4, 4, 3)])
def test_it_is_what_loops_find(n, m, k):
    samples, reference = features(n, shift=0.4), features(m, seed=1)
    assert precision_recall(samples, reference, neighbours=k) == by_loops(samples, reference, k)


def test_blocks_change_nothing(monkeypatch):
    samples, reference, rows = features(30, shift=0.4), features(23, seed=1), []
    whole = precision_recall(samples, reference)
    monkeypatch.setattr(manifold, "_ROWS", 7)
    monkeypatch.setattr(manifold, "_COLUMNS", 2)
    assert precision_recall(samples, reference, advance=rows.append) == whole
    assert 0 < min(whole) <= max(whole) < 1
    assert sum(rows) == 2 * 23 + 30


def test_sets_far_apart_and_the_same():
    assert precision_recall(features(20), features(20, seed=1, shift=50)) == (0, 0)
    assert precision_recall(features(20), features(20)) == (1, 1)


def test_rounding_to_float16():
    u, v = (rows.numpy() * 3 for rows in (features(6), features(5, seed=1)))
    found = squared_distances(torch.from_numpy(u), torch.from_numpy(v), half=True).numpy()
    for i, j in np.ndindex(6, 5):
        a, b = u[i].astype(np.float16), v[j].astype(np.float16)
        norms = [np.float16(np.sum((x * x).astype(np.float32))) for x in (a, b)]
        product = np.float16(np.sum(a.astype(np.float32) * b.astype(np.float32)))
        assert found[i, j] == np.float32(max(norms[0] - np.float16(2) * product + norms[1], np.float16(0)))
    exact = squared_distances(torch.from_numpy(u), torch.from_numpy(v)).numpy()
    assert 0 < np.abs(found - exact).max() < 0.2


def test_beyond_float16_it_is_float32():
    u, v = features(3) * 1000, features(3, seed=1)
    assert torch.equal(squared_distances(u, v, half=True), squared_distances(u, v))


def test_too_few():
    with pytest.raises(DataError, match="more than 3 images in each set, got 3 samples and 9 in the reference"):
        precision_recall(features(3), features(9))
