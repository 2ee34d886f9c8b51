"""The Triton kernel of the norm between two blocks against the plain function."""

import pytest
import torch
from torch.testing import assert_close

from aimamba.ops.norm import residual as plain

kernels = pytest.importorskip("aimamba.ops.norm.triton.residual", reason="Triton is not installed")

ROWS, WIDTH, BLOCKS = 3, 48, 2
CASES = {
    "first": ("shift", "scale"),
    "attention": ("shift", "scale", "mixed", "gate"),
    "mamba": ("shift", "scale", "mixed", "gate", "squares"),
    "in parts": ("shift", "scale", "parts", "gate", "squares"),
    "last": ("shift", "scale", "mixed", "gate", "squares", "final_weight"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_function(case, dtype):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    shift, scale, gate = normal(ROWS, BLOCKS, 3, WIDTH, dtype=dtype)[:, 1].unbind(1)  # rows far apart, as in use
    given = {
        "shift": shift, "scale": scale, "gate": gate, "mixed": normal(ROWS, WIDTH, dtype=dtype),
        "squares": normal(ROWS, 5).square(), "final_weight": normal(WIDTH),
        "parts": normal(3, ROWS, WIDTH, dtype=dtype),
    }  # fmt: skip
    options = {name.replace("parts", "mixed"): given[name] for name in CASES[case]} | {"inner": 20}
    norm_weight, residual = normal(WIDTH), normal(ROWS, WIDTH)
    other = residual.clone()
    expected = plain.residual_norm_step(residual, norm_weight, **options)
    hidden = kernels.residual_norm_step(other, norm_weight, **options)
    assert hidden.dtype == dtype
    assert_close(other, residual, rtol=1e-5, atol=1e-5)
    assert_close(hidden, expected, rtol=2**-7 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)
