"""RMSNorm and its gated form against their formulas."""

import pytest
import torch
from torch.testing import assert_close

from aimamba.ops.norm.rms import (
    gated_rms_norm,
    gated_rms_norm_efficient,
    modulated_rms_norm,
    modulated_rms_norm_step,
    rms_norm,
)


def make(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_equals_the_formula(shape):
    x, weight = make(*shape), make(7, seed=1)
    expected = x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight
    assert_close(rms_norm(x, weight), expected, rtol=1e-13, atol=1e-13)


def test_gate_comes_before_the_norm():
    x, gate, weight = make(4, 6), make(4, 6, seed=1), make(6, seed=2)
    gated = x * gate * torch.sigmoid(gate)
    expected = gated / (gated.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight
    assert_close(gated_rms_norm(x, gate, weight), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_normalised_in_float32(dtype):
    x, gate, weight = make(64, 32, dtype=dtype) * 100, make(64, 32, dtype=dtype, seed=1), torch.ones(32)
    assert torch.equal(rms_norm(x, weight), rms_norm(x.float(), weight).to(dtype))
    assert torch.equal(gated_rms_norm(x, gate, weight), gated_rms_norm(x.float(), gate.float(), weight).to(dtype))


def test_zeros_stay_zeros_with_a_finite_gradient():
    x = torch.zeros(2, 4, requires_grad=True)
    y = rms_norm(x, torch.ones(4))
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 4))
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_modulated_norm_of_one_token_equals_the_formula(size):
    x, weight, scale, shift = size * make(4, 6), make(6, seed=1), make(4, 6, seed=2), make(4, 6, seed=3)
    expected = x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight * (1 + scale) + shift
    assert_close(modulated_rms_norm_step(x, weight, scale, shift), expected, rtol=1e-12, atol=1e-12)


def modulated(x, weight, scale, shift):
    return rms_norm(x, weight).to(scale.dtype) * (1 + scale[:, None]) + shift[:, None]


CASES = {
    "gated": (gated_rms_norm_efficient, gated_rms_norm, ((2, 3, 6), (2, 3, 6), (6,))),
    "modulated": (modulated_rms_norm, modulated, ((2, 3, 6), (6,), (2, 6), (2, 6))),
}


def outputs_and_gradients(form, inputs):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    y = form(*leaves)
    y.backward(make(*y.shape, seed=9).to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_efficient_ones_equal_the_plain_ones_and_their_gradients(case, dtype, near):
    efficient, plain, shapes = CASES[case]
    inputs = [make(*shape, seed=number, dtype=dtype) for number, shape in enumerate(shapes)]
    for ours, theirs in zip(
        outputs_and_gradients(efficient, inputs), outputs_and_gradients(plain, inputs), strict=True
    ):
        assert_close(ours, theirs, rtol=near, atol=near)


@pytest.mark.parametrize("case", CASES)
def test_gradcheck_of_efficient_ones(case):
    efficient, _, shapes = CASES[case]
    inputs = [make(*shape, seed=number).requires_grad_() for number, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(efficient, inputs)


def test_efficient_ones_in_bfloat16():
    x, gate, weight = make(4, 64, dtype=torch.bfloat16), make(4, 64, dtype=torch.bfloat16, seed=1), make(64).float()
    assert torch.equal(gated_rms_norm_efficient(x, gate, weight), gated_rms_norm(x, gate, weight))
    got = outputs_and_gradients(gated_rms_norm_efficient, (x, gate, weight))
    exact = outputs_and_gradients(gated_rms_norm, (x.double(), gate.double(), weight.double()))
    assert [t.dtype for t in got] == [torch.bfloat16] * 3 + [torch.float32]
    for ours, oracle in zip(got, exact, strict=True):
        assert (ours.double() - oracle).abs().max() <= 0.01 * oracle.abs().max()

    residual, narrow = make(2, 3, 64).float(), [make(2, 64, dtype=torch.bfloat16, seed=seed) for seed in (1, 2)]
    got = outputs_and_gradients(modulated_rms_norm, (residual, weight, *narrow))
    exact = outputs_and_gradients(modulated, (residual.double(), weight.double(), *(t.double() for t in narrow)))
    assert [t.dtype for t in got] == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    for ours, oracle in zip(got, exact, strict=True):
        assert (ours.double() - oracle).abs().max() <= 0.01 * oracle.abs().max()
