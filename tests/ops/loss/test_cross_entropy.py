"""The sliced cross entropy against torch's on whole logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.ops.loss.cross_entropy import sliced_cross_entropy


def make(tokens=11, width=5, classes=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, width, generator=generator, dtype=dtype) for n in (tokens, classes))
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(classes, (tokens,), generator=generator)


def plain(hidden, weight, targets):
    return F.cross_entropy(F.linear(hidden, weight).float().to(hidden.dtype), targets)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 200))
def test_value_and_gradients(tokens, classes, logits_at_once):
    hidden, weight, targets = make(tokens, classes=classes)
    expected = F.cross_entropy(hidden @ weight.mT, targets)
    got = sliced_cross_entropy(hidden, weight, targets, logits_at_once=logits_at_once)
    assert_close(got, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))
    for ours, theirs in zip(torch.autograd.grad(3 * got, (hidden, weight)), wanted, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_label_smoothing_is_that_of_torch(dtype):
    hidden, weight, targets = make(20, 8, 30, dtype)
    expected = F.cross_entropy(hidden @ weight.mT, targets, label_smoothing=0.2)
    got = sliced_cross_entropy(hidden, weight, targets, smoothing=0.2, logits_at_once=100)
    assert_close(got, expected)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    for ours, theirs in zip(torch.autograd.grad(got, (hidden, weight)), wanted, strict=True):
        assert_close(ours, theirs)


def test_label_smoothing_under_autocast():
    hidden, weight, targets = make(64, 16, 300, torch.float32)
    exact = F.cross_entropy(hidden @ weight.mT, targets, label_smoothing=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sliced_cross_entropy(hidden.bfloat16(), weight, targets, smoothing=0.2)
    assert loss.dtype == torch.float32
    assert_close(loss, exact, rtol=0.01, atol=0.0)


def test_in_float32_within_a_millionth():
    hidden, weight, targets = make(200, 16, 300, torch.float32)
    expected = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight))
    loss = sliced_cross_entropy(hidden, weight, targets, logits_at_once=300 * 33)
    assert_close(loss, plain(hidden, weight, targets), rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(loss, (hidden, weight)), expected, strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))


def test_under_autocast_products_are_narrow_and_gradients_as_the_parameters():
    hidden, weight, targets = make(64, 16, 300, torch.float32)
    exact = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(F.linear(hidden, weight).float(), targets)
        loss = sliced_cross_entropy(hidden, weight, targets, logits_at_once=300 * 10)
    assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(loss, (hidden, weight)), exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() <= 0.03 * theirs.abs().max()


@pytest.mark.parametrize("frozen", [0, 1])
def test_only_what_is_wanted_gets_a_gradient(frozen):
    *leaves, targets = make()
    leaves[frozen].requires_grad_(False)
    sliced_cross_entropy(*leaves, targets, logits_at_once=14).backward()
    assert leaves[frozen].grad is None
    assert leaves[1 - frozen].grad is not None


def test_without_gradients_only_the_value():
    hidden, weight, targets = make()
    with torch.no_grad():
        loss = sliced_cross_entropy(hidden, weight, targets, logits_at_once=14)
    assert not loss.requires_grad
    assert_close(loss, plain(hidden, weight, targets).detach())


def test_gradcheck():
    hidden, weight, targets = make(5, 3, 4)
    assert torch.autograd.gradcheck(
        lambda *two: sliced_cross_entropy(*two, targets, logits_at_once=8), (hidden, weight)
    )
