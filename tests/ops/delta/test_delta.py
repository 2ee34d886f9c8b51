"""The forms of the gated delta rule against each other; ``delta_recurrent`` is the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.ops.delta.chunked import delta_chunked
from aimamba.ops.delta.reference import delta_recurrent, delta_step
from tests.ops.scans import normals, parameters, sizes

NAMES = ("q", "k", "v", "log_decay", "beta", "initial_state")


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
) -> tuple[Tensor | None, ...]:
    generator = torch.Generator().manual_seed(seed)
    normal = normals(generator)
    tokens = batch, length, heads
    q, k = (F.normalize(normal(*tokens, states), dim=-1) for _ in range(2))
    log_decay, beta = -F.softplus(4 * normal(*tokens) - 2), normal(*tokens).sigmoid()
    state = normal(batch, heads, width, states) if with_state else None
    inputs = (q, k, normal(*tokens, width), log_decay, beta, state)
    return tuple(None if t is None else t.to(dtype) for t in inputs)


def test_both_forms_have_one_signature():
    assert parameters(delta_chunked) == parameters(delta_recurrent)


@settings(max_examples=15)
@given(size=sizes(40), chunk_size=st.integers(1, 50), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_chunked_equals_recurrent(size, chunk_size, dtype):
    inputs = make_inputs(**size, dtype=dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    for ours, oracle in zip(delta_chunked(*inputs, chunk_size=chunk_size), delta_recurrent(*inputs), strict=True):
        assert ours.dtype == dtype
        assert_close(ours, oracle, rtol=tolerance, atol=tolerance)


def test_step_by_hand():
    """With beta 1 and a key of length 1, the state returns just the value for the key, and the rest has faded."""
    q = k = torch.tensor([[[0.6, 0.8]]])
    state = torch.tensor([[[[1.0, 2.0]]]])
    log_decay, one = torch.tensor([[0.5]]).log(), torch.ones(1, 1)
    y, new = delta_step(q, k, torch.tensor([[[3.0]]]), log_decay, one, state)
    # a S = (0.5, 1); a S k = 0.3 + 0.8 = 1.1; (0.5, 1) + (3 - 1.1) (0.6, 0.8) = (1.64, 2.52)
    assert_close(new, torch.tensor([[[[1.64, 2.52]]]]))
    assert_close(y, torch.tensor([[[3.0]]]))
    assert state.tolist() == [[[[1.0, 2.0]]]], "the old state stays"


def test_repeated_keys_overwrite_in_one_chunk():
    """The same key at every token: each value replaces the one before it, so an output is that of its own token."""
    _, k, v, _, _, _ = make_inputs(0, length=12)
    k, one = k[:, :1].expand(-1, 12, -1, -1), torch.ones(2, 12, 2, dtype=torch.float64)
    y, _ = delta_chunked(k, k, v, 0 * one, one)
    assert_close(y, v)


@pytest.mark.parametrize("chunk_size", [5, 64])
def test_gradients_equal_those_of_the_recurrence(chunk_size):
    gradients = []
    for form in (delta_recurrent, delta_chunked):
        leaves = [tensor.requires_grad_() for tensor in make_inputs(1)]
        y, state = form(*leaves, chunk_size=chunk_size)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
        gradients.append(torch.autograd.grad((y * weight).sum() + state.square().sum(), leaves))
    for name, oracle, ours in zip(NAMES, *gradients, strict=True):
        assert oracle.abs().max() > 1e-3, name
        assert_close(ours, oracle, rtol=1e-9, atol=1e-9, msg=name)


def test_extreme_decays_have_finite_results_and_gradients():
    q, k, v, log_decay, beta, state = make_inputs(3, length=40, dtype=torch.float32)
    log_decay[:, ::3], log_decay[:, 1::3] = -1e4, 0.0
    leaves = [tensor.requires_grad_() for tensor in (q, k, v, log_decay, beta, state)]
    y, last = delta_chunked(*leaves, chunk_size=16)
    oracle, oracle_last = delta_recurrent(*(tensor.detach().double() for tensor in leaves))
    assert_close(y.double(), oracle, rtol=1e-4, atol=1e-4)
    assert_close(last.double(), oracle_last, rtol=1e-4, atol=1e-4)
    assert all(bool(each.isfinite().all()) for each in torch.autograd.grad(y.sum(), leaves))


def test_bfloat16_inputs_are_computed_in_float32_also_under_autocast():
    *inputs, _ = make_inputs(4, length=70, width=8, states=16)
    narrow = [tensor.bfloat16() for tensor in inputs[:3]] + [tensor.float() for tensor in inputs[3:]]
    oracle, oracle_state = delta_recurrent(*(tensor.double() for tensor in narrow))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = delta_chunked(*narrow)
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert_close(state.double(), oracle_state, rtol=1e-4, atol=1e-4)
    assert_close(y, oracle.bfloat16(), rtol=0.01, atol=1e-3)
