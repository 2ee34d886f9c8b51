"""The product with few rows against the plain one."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.ops.linear.linear import linear, weighted_sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (2,), (4,), (5,), (64,), (65,), (2, 1), (1, 3), (2, 2, 2), ()])
def test_it_is_the_linear_map(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*some, 24, generator=generator).to(dtype) for some in (shape, (10,)))
    y, expected = linear(x, weight), F.linear(x, weight)
    assert y.dtype == dtype
    assert y.is_contiguous()
    assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_gradients():
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    dy = torch.randn(3, 5)
    found = torch.autograd.grad(linear(x, weight), (x, weight), dy)
    assert_close(found, torch.autograd.grad(F.linear(x, weight), (x, weight), dy))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("places", [1, 3, 7])
def test_weighted_sums(places, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, 7, 8, generator=generator).to(dtype)
    weights = torch.randn(2, 3, places, generator=generator).to(dtype)
    expected = torch.einsum("bht,bhtp->bhp", weights.double(), values[:, :, :places].double())
    sums = weighted_sums(weights, values)
    assert sums.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 0.01}[dtype]
    assert_close(sums.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def test_weighted_sums_in_inference_mode_serve_other_modes_after_it():
    weights, values = torch.randn(1, 2, 5), torch.randn(1, 2, 6, 4)
    with torch.inference_mode():
        expected = weighted_sums(weights, values).clone()
    assert torch.equal(weighted_sums(weights.requires_grad_(), values).detach(), expected)
