"""Products with few rows, and with many, against torch's."""

import pytest
import torch
from torch.testing import assert_close

from aimamba.ops.linear import residual as plain
from aimamba.ops.linear.linear import linear

products = pytest.importorskip("aimamba.ops.linear.triton.linear", reason="Triton is not installed")

WIDTH, OUTPUTS = 24, 20  # neither a power of two, nor a whole number of blocks
# With many rows 24 numbers of about 1 are rounded before the product, each to 8 bits, in either way of computing it.
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-6, "atol": 2**-4}}


@pytest.fixture
def normal():
    generator = torch.Generator().manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def make(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("numbers", [16, 256])
def test_linear(normal, rows, numbers, dtype):
    x, weight = normal(rows, WIDTH, dtype=dtype), normal(OUTPUTS, WIDTH, dtype=dtype)
    y = products.linear(x, weight, launch=products.Launch(numbers, 4))
    assert y.dtype == dtype
    assert_close(y, linear(x, weight), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [2, 9])
@pytest.mark.parametrize("given", [(), ("mixed", "gate"), ("mixed", "gate", "squares")], ids=len)
def test_residual_linear(normal, given, rows, dtype):
    shift, scale, gate = normal(rows, 2, 3, WIDTH, dtype=dtype)[:, 1].unbind(1)
    parts = {"gate": gate, "mixed": normal(rows, WIDTH, dtype=dtype), "squares": normal(rows, 5).square()}
    options = {name: parts[name] for name in given} | {"inner": 20}
    residual, norm_weight = normal(rows, WIDTH), normal(WIDTH)
    weight = normal(OUTPUTS, WIDTH, dtype=dtype)
    expected = plain.residual_linear_step(residual.clone(), norm_weight, shift, scale, weight, **options)
    launch = products.Launch(128, 4)
    found = products.residual_linear_step(residual, norm_weight, shift, scale, weight, **options, launch=launch)
    assert_close(found, expected, **CLOSE[dtype])
