"""RMSNorm against torch's and the gated form against its formula."""

import pytest
import torch
from torch.testing import assert_close

from aimamba.ops.norm import gated_rms_norm, rms_norm


def make(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_equals_torch(shape):
    x, weight = make(*shape), make(7, seed=1)
    assert_close(rms_norm(x, weight), torch.nn.functional.rms_norm(x, (7,), weight, eps=1e-5), rtol=1e-13, atol=1e-13)


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
