"""Gradients and precision of ``ssd_autograd``; its outputs are compared in ``test_ssd``."""

import pytest
import torch
from test_ssd import NAMES, extreme_inputs, gradients, make_inputs
from torch.testing import assert_close

from aimamba.ops.ssd.autograd import ssd_autograd
from aimamba.ops.ssd.chunked import ssd_chunked
from aimamba.ops.ssd.reference import ssd_recurrent


@pytest.mark.parametrize("seed", range(4))
def test_bfloat16_is_as_near_as_the_plain_form(seed):
    x, dt, A, B, C, _ = make_inputs(seed, length=70, heads=3, width=8, states=16, with_state=False)
    x, B, C = (t.bfloat16() for t in (x, B, C))
    narrow, wide = (x, dt.float(), A.float(), B, C, None), tuple(t.double() for t in (x, dt.float(), A.float(), B, C))
    y, state = ssd_autograd(*narrow, chunk_size=16)
    oracle, oracle_state = ssd_recurrent(*wide)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert (y.double() - oracle).abs().max() <= 0.01 * oracle.abs().max()
    assert (state.double() - oracle_state).abs().max() <= 0.01 * oracle_state.abs().max()
    expected = first_gradients(ssd_recurrent, wide)
    for name, gradient in first_gradients(ssd_autograd, narrow, chunk_size=16).items():
        assert (gradient - expected[name]).abs().max() <= 0.02 * expected[name].abs().max(), name


def first_gradients(form, inputs, **options):
    """Return the gradients of the outputs alone, as training uses them."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs if tensor is not None]
    y, _ = form(*leaves, **options)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    y.backward(weights.to(y.dtype))
    return {name: leaf.grad.double() for name, leaf in zip(NAMES, leaves, strict=False)}


@pytest.mark.parametrize("chunk_size", [1, 5, 16, 64])
@pytest.mark.parametrize("length", [1, 16, 37])
@pytest.mark.parametrize("whole", [False, True])
def test_gradients(length, chunk_size, whole):
    """Of outputs and last state with a first state, and only of outputs without one."""
    inputs = make_inputs(length, length=length, with_state=whole)
    measure = gradients if whole else first_gradients
    expected = measure(ssd_recurrent, inputs if whole else inputs[:-1])
    got = measure(ssd_autograd, inputs if whole else inputs[:-1], chunk_size=chunk_size)
    for name, gradient in got.items():
        assert_close(gradient, expected[name], rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_gradcheck():
    inputs = [tensor.requires_grad_() for tensor in make_inputs(2, length=5, batch=1, heads=2, width=2, states=2)]
    assert torch.autograd.gradcheck(lambda *leaves: ssd_autograd(*leaves, chunk_size=2), inputs)


@pytest.mark.parametrize("chunk_size", [1, 7, 40])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_extreme_decays(chunk_size, dtype, near):
    inputs = extreme_inputs(dtype)
    exact = tuple(tensor.double() for tensor in inputs)
    for ours, oracle in zip(ssd_autograd(*inputs, chunk_size=chunk_size), ssd_recurrent(*exact), strict=True):
        assert (ours.double() - oracle).abs().max() <= near * oracle.abs().max()
    expected = gradients(ssd_recurrent, exact)
    for name, gradient in gradients(ssd_autograd, inputs, chunk_size=chunk_size).items():
        assert gradient.isfinite().all(), name
        assert (gradient.double() - expected[name]).abs().max() <= near * expected[name].abs().max(), name


def test_rows_do_not_depend_on_their_batch():
    inputs = make_inputs(4, batch=3, length=20)
    y, state = ssd_autograd(*inputs, chunk_size=8)
    x, dt, A, B, C, first = inputs
    alone, alone_state = ssd_autograd(x[1:2], dt[1:2], A, B[1:2], C[1:2], first[1:2], chunk_size=8)
    assert_close(alone, y[1:2], rtol=1e-13, atol=1e-13)
    assert_close(alone_state, state[1:2], rtol=1e-13, atol=1e-13)


def test_float32_inputs_under_autocast():
    inputs = make_inputs(6, length=30, heads=3, width=8, states=16, dtype=torch.float32)
    expected = gradients(ssd_chunked, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(ssd_autograd, inputs, chunk_size=8)
    for name, gradient in got.items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).abs().max() <= 0.03 * expected[name].abs().max(), name
