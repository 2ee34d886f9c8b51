"""The Inception score against its formula."""

import numpy as np
import pytest
import torch

from aimamba.evaluation.inception_score import InceptionScore

LOGITS = np.random.default_rng(0).normal(0, 2, (23, 6))


def formula(logits):
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(axis=0))), axis=1)))


@pytest.mark.parametrize("size", [1, 4, 23])
def test_it_is_the_mean_of_splits_in_order(size):
    score = InceptionScore(split_size=10)
    for start in range(0, 23, size):
        score.add(torch.from_numpy(LOGITS[start : start + size]))
    expected = np.mean([formula(LOGITS[:10]), formula(LOGITS[10:20]), formula(LOGITS[20:])])
    assert score.value() == pytest.approx(expected, rel=1e-9)


def test_classes_that_are_certain_and_even():
    score = InceptionScore()
    score.add(torch.eye(5).repeat(4, 1) * 1e4)
    assert score.value() == pytest.approx(5)


def test_float64_is_only_asked_of_the_cpu(monkeypatch):
    """MPS has no float64: logits move to the CPU before they are widened."""
    order = []
    for name in ("cpu", "double"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, real=real, name=name: order.append(name) or real(self))
    InceptionScore().add(torch.zeros(2, 3))
    assert order == ["cpu", "double"]
