"""The kernel of the first block's input against the plain function."""

import pytest
import torch
from torch.testing import assert_close

from aimamba.ops.embedding import step as plain

kernels = pytest.importorskip("aimamba.ops.embedding.triton.step", reason="Triton is not installed")

WIDTH, CODES, PLACES = 24, 10, 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
def test_equals_the_plain_function(dtype, placed, prefix):
    """Rows that take their opening are given codes that do not exist, which must not be looked up."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    opening, words, places = (
        torch.randn(*count, WIDTH, generator=generator).to(device, dtype)
        for count in ((5, prefix + 1), (CODES,), (PLACES,))
    )
    inputs, position, shift = (
        torch.tensor(numbers, device=device) for numbers in ([999, 3, 9, 0, -1], [0, 1, 5, 6, prefix], [0, 1, 1, 0, 0])
    )
    position[1:4] += prefix
    given = inputs, position, shift, opening, words, places if placed else None
    found = kernels.embed_step(*given)
    assert found.dtype == torch.float32
    assert_close(found, plain.embed_step(*given), rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=0)
    for row, place in ((0, 0), (4, prefix)):
        assert_close(found[row], opening[row, place].float(), rtol=0, atol=0)
