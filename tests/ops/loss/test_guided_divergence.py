"""The divergence from a guided teacher, in slices, against one from whole logits."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.ops.loss.guided_divergence import sliced_guided_divergence


@pytest.fixture
def inputs() -> list[torch.Tensor]:
    """Hidden states of the model and of the teacher with and without a condition, and both heads."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return [normal(7, 6).requires_grad_(), normal(10, 6).requires_grad_(), normal(7, 6), normal(7, 6), normal(10, 6)]


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("at_once", [None, 30, 1])
def test_it_is_that_of_whole_logits(inputs, scale, at_once):
    hidden, head, conditional, unconditional, teacher = inputs
    c, u = conditional @ teacher.T, unconditional @ teacher.T
    wanted = (u + scale * (c - u)).log_softmax(dim=-1)
    whole = F.kl_div((hidden @ head.T).log_softmax(dim=-1), wanted, reduction="none", log_target=True).sum(dim=-1)
    found = sliced_guided_divergence(*inputs, scale, logits_at_once=at_once)
    assert_close(found, whole)
    weights = torch.arange(7.0)
    for one, two in zip(*(torch.autograd.grad(x @ weights, (hidden, head)) for x in (found, whole)), strict=True):
        assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_model_like_its_teacher_has_none(inputs):
    _, _, conditional, unconditional, teacher = inputs
    hidden = unconditional + 3.0 * (conditional - unconditional)
    found = sliced_guided_divergence(hidden, teacher, conditional, unconditional, teacher, 3.0)
    assert_close(found, torch.zeros(7), rtol=0, atol=1e-5)


def test_the_teacher_has_no_gradient_and_autocast_narrows_products(inputs):
    teacher = inputs[-1].requires_grad_()
    exact = sliced_guided_divergence(*inputs, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = sliced_guided_divergence(*inputs, 2.0)
    assert_close(found, exact, rtol=0.05, atol=0.05)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert teacher.grad is None
