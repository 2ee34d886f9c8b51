"""The input of the first block as one Triton kernel: see ``aimamba.ops.embedding.step``.

A program handles one row. The sum of two embeddings is rounded to their dtype, as PyTorch rounds it.

Shape letters: see there.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

_WARPS = 4


@triton.jit
@no_type_check
def _embed_step_kernel(
    inputs, position, position_shift, opening, words, places, residual,
    D: tl.constexpr, PREFIX: tl.constexpr, BLOCK: tl.constexpr, PLACED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    consumed = tl.load(position + row)
    if consumed <= PREFIX:
        vector = opening + (row * (PREFIX + 1) + consumed) * D
        hidden = tl.load(vector + column, mask=inside, other=0.0).to(tl.float32)
    else:
        narrow = words.dtype.element_ty
        hidden = tl.load(words + tl.load(inputs + row) * D + column, mask=inside, other=0.0).to(tl.float32)
        if PLACED:
            place = consumed - 1 - PREFIX + tl.load(position_shift + row)
            hidden += tl.load(places + place * D + column, mask=inside, other=0.0).to(tl.float32)
        hidden = hidden.to(narrow).to(tl.float32)
    tl.store(residual + row * D + column, hidden, mask=inside)


def embed_step(
    inputs: Int[Tensor, " b"],
    position: Int[Tensor, " b"],
    position_shift: Int[Tensor, " b"],
    opening: Float[Tensor, "b p1 d"],
    words: Float[Tensor, "v d"],
    places: Float[Tensor, "l d"] | None,
) -> Float[Tensor, "b d"]:
    """Compute ``aimamba.ops.embedding.step.embed_step`` for float32 or narrower embeddings."""
    rows, vectors, width = opening.shape
    residual = torch.empty(rows, width, dtype=torch.float32, device=opening.device)
    _embed_step_kernel[(rows,)](
        inputs, position, position_shift, opening.contiguous(), words, words if places is None else places, residual,
        width, vectors - 1, triton.next_power_of_2(width), places is not None, num_warps=_WARPS,
    )  # fmt: skip
    return residual
