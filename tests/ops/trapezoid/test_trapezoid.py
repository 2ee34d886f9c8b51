"""The forms of Mamba-3's recurrence against each other; ``trapezoid_recurrent`` is the oracle."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.ops.ssd.reference import ssd_recurrent
from aimamba.ops.trapezoid.chunked import trapezoid_chunked
from aimamba.ops.trapezoid.reference import (
    TrapezoidState,
    empty_state,
    trapezoid_recurrent,
    trapezoid_step,
    turn,
)
from tests.ops.scans import normals, parameters, sizes

NAMES = ("x", "dt", "log_decay", "share", "B", "C", "h", "latest x", "latest B")


def make_inputs(
    seed: int,
    *,
    length: int = 23,
    batch: int = 2,
    heads: int = 2,
    width: int = 3,
    states: int = 4,
    with_state: bool = True,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """The six inputs, and the three parts of a state."""
    generator = torch.Generator().manual_seed(seed)
    normal = normals(generator)
    tokens = batch, length, heads
    dt = F.softplus(normal(*tokens) - 1)
    inputs = [normal(*tokens, width), dt, -4 * dt * normal(*tokens).square(), normal(*tokens).sigmoid()]
    inputs += [normal(*tokens, states), normal(*tokens, states)]
    rows = batch, heads
    state = [normal(*rows, width, states), normal(*rows, width), normal(*rows, states)] if with_state else []
    return [tensor.to(dtype) for tensor in (*inputs, *state)]


def run(form, tensors: list[Tensor], **options) -> tuple[Tensor, ...]:
    state = TrapezoidState(*tensors[6:]) if len(tensors) > 6 else None
    y, last = form(*tensors[:6], state, **options)
    return y, *last


def test_both_forms_have_one_signature():
    assert parameters(trapezoid_chunked) == parameters(trapezoid_recurrent)


@settings(max_examples=15)
@given(size=sizes(40), chunk_size=st.integers(1, 50), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_chunked_equals_recurrent(size, chunk_size, dtype):
    tensors = make_inputs(**size, dtype=dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    found = run(trapezoid_chunked, tensors, chunk_size=chunk_size)
    for ours, oracle in zip(found, run(trapezoid_recurrent, tensors), strict=True):
        assert ours.dtype == dtype
        assert_close(ours, oracle, rtol=tolerance, atol=tolerance)


def test_a_sequence_goes_on_from_the_state_of_its_first_part():
    tensors = make_inputs(7)
    whole, *last = run(trapezoid_chunked, tensors, chunk_size=8)
    first, *state = run(trapezoid_chunked, [*(t[:, :9] for t in tensors[:6]), *tensors[6:]], chunk_size=4)
    second, *other = run(trapezoid_chunked, [*(t[:, 9:] for t in tensors[:6]), *state], chunk_size=5)
    assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-10, atol=1e-10)
    for ours, oracle in zip(other, last, strict=True):
        assert_close(ours, oracle, rtol=1e-10, atol=1e-10)


def test_step_by_hand():
    """One head of width 1 with one state, step size 0.5, decay 0.5, a quarter of an input with its own token."""
    one = torch.ones(1, 1)
    given = [3 * one[..., None], 0.5 * one, (0.5 * one).log(), 0.25 * one, 2 * one[..., None], 5 * one[..., None]]
    state = TrapezoidState(torch.full((1, 1, 1, 1), 8.0), torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 4.0))
    y, new = trapezoid_step(*given, state)
    # 0.5 * 8 + 0.75 * 0.5 * 0.5 * 2 * 4 + 0.25 * 0.5 * 3 * 2 = 4 + 1.5 + 0.75
    assert_close(new.h.flatten(), torch.tensor([6.25]))
    assert (new.x.item(), new.B.item(), state.h.item()) == (3.0, 2.0, 8.0)
    assert_close(y.flatten(), torch.tensor([31.25]))


def test_without_a_second_entry_it_is_the_recurrence_of_mamba2():
    x, dt, _, share, B, C = make_inputs(3, heads=1, with_state=False)
    A = torch.tensor([-1.5], dtype=torch.float64)
    y, state = trapezoid_chunked(x, dt, dt * A, torch.ones_like(share), B, C, chunk_size=6)
    oracle, last = ssd_recurrent(x, dt, A, B[:, :, 0], C[:, :, 0])
    assert_close(y, oracle, rtol=1e-10, atol=1e-10)
    assert_close(state.h, last, rtol=1e-10, atol=1e-10)


def test_turned_b_and_c_are_a_complex_recurrence():
    """One pair of features is one complex number, which each token turns further and lets fade."""
    x, dt, log_decay, share, B, C = make_inputs(5, batch=1, heads=1, width=1, states=2, length=9, with_state=False)
    angle = torch.randn(1, 9, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    total = angle.cumsum(dim=1)
    y, _ = trapezoid_chunked(x, dt, log_decay, share, turn(B, total), turn(C, total), chunk_size=4)
    h = before = 0j
    for t in range(9):
        size, decay = dt[0, t, 0].item(), math.exp(log_decay[0, t, 0].item())
        part, turned = share[0, t, 0].item(), complex(math.cos(-angle[0, t]), math.sin(-angle[0, t]))
        b, c = (complex(*each[0, t, 0].tolist()) for each in (B, C))
        entering = x[0, t, 0, 0].item() * b
        h = decay * turned * (h + (1 - part) * size * before) + part * size * entering
        before = entering
        assert y[0, t, 0, 0].item() == pytest.approx((h * c.conjugate()).real, abs=1e-12)


def test_features_beyond_the_angles_stay():
    x, angle = torch.arange(1.0, 7.0), torch.tensor([math.pi / 2])
    assert_close(turn(x, angle), torch.tensor([-2.0, 1.0, 3.0, 4.0, 5.0, 6.0]))


@pytest.mark.parametrize("chunk_size", [5, 64])
def test_gradients_equal_those_of_the_recurrence(chunk_size):
    gradients = []
    for form in (trapezoid_recurrent, trapezoid_chunked):
        leaves = [tensor.requires_grad_() for tensor in make_inputs(1)]
        y, *state = run(form, leaves, chunk_size=chunk_size)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
        total = (y * weight).sum() + sum(part.square().sum() for part in state)
        gradients.append(torch.autograd.grad(total, leaves))
    for name, oracle, ours in zip(NAMES, *gradients, strict=True):
        assert oracle.abs().max() > 1e-3, name
        assert_close(ours, oracle, rtol=1e-9, atol=1e-9, msg=name)


def test_extreme_decays_have_finite_results_and_gradients():
    tensors = make_inputs(3, length=40, dtype=torch.float32)
    tensors[2][:, ::3], tensors[2][:, 1::3] = -1e4, 0.0
    leaves = [tensor.requires_grad_() for tensor in tensors]
    found = run(trapezoid_chunked, leaves, chunk_size=16)
    for ours, oracle in zip(found, run(trapezoid_recurrent, [t.detach().double() for t in leaves]), strict=True):
        assert_close(ours.double(), oracle, rtol=1e-4, atol=1e-4)
    assert all(bool(each.isfinite().all()) for each in torch.autograd.grad(found[0].sum(), leaves[:6]))


def test_bfloat16_inputs_stay_within_a_hundredth_of_the_largest_output():
    tensors = make_inputs(4, length=70, width=8, states=16, with_state=False)
    narrow = [tensors[0].bfloat16(), *(tensor.float() for tensor in tensors[1:])]
    oracle, last = trapezoid_recurrent(*(tensor.double() for tensor in narrow))
    y, state = trapezoid_chunked(*narrow)
    assert y.dtype == torch.bfloat16
    assert state.h.dtype == torch.float32
    assert (y.double() - oracle).abs().max() <= 0.01 * oracle.abs().max()
    assert (state.h.double() - last.h).abs().max() <= 0.01 * last.h.abs().max()
    assert all(part.dtype == torch.float32 for part in empty_state(narrow[0], narrow[4]))
