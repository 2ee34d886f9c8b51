"""The product with few rows against the plain one."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from aimamba.ops.linear import linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (2,), (4,), (5,), (2, 1), (1, 3), (2, 2, 2), ()])
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
