"""The cross entropy of each token and its gradient as one Triton kernel, which replaces logits by their gradient.

A program handles one token: it reads its logits once, into registers. They leave room for a second program on a
multiprocessor, so that one computes while the other reads.

Shape letters: M tokens, V vocabulary.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.ops.triton.functions import LOG2_E

MOST_CODES = 65536  # in bfloat16 more than 32,768 do not fit into the registers of a program, and some go to memory
_BYTES_PER_WARP = 2048  # of logits: 64 bytes a thread, which take 64 of its registers
_MOST_WARPS = 32


@triton.jit
@no_type_check
def _cross_entropy_kernel(logits, targets, losses, factor, V: tl.constexpr, WIDE: tl.constexpr, LEARNING: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    code = tl.arange(0, WIDE)
    inside = code < V
    logits += token * V
    target = tl.load(targets + token).to(tl.int32)
    chosen = tl.load(logits + target, mask=(target >= 0) & (target < V), other=0.0).to(tl.float32)
    values = tl.load(logits + code, mask=inside, other=-float("inf")).to(tl.float32)
    highest = tl.max(values, axis=0)
    powers = tl.exp2((values - highest) * LOG2_E)  # fewer instructions than exp, which keeps denormal numbers
    total = tl.sum(powers, axis=0)
    tl.store(losses + token, tl.log(total) + (highest - chosen))
    if LEARNING:
        slope = powers * (factor / total) - tl.where(code == target, factor, 0.0)
        tl.store(logits + code, slope.to(logits.dtype.element_ty), mask=inside)


def cross_entropy_(
    logits: Float[Tensor, "m v"], targets: Int[Tensor, " m"], factor: float, *, learning: bool, warps: int | None = None
) -> Float[Tensor, " m"]:
    """Return the cross entropy of each token, in float32.

    Args:
        logits: Contiguous, float32 or bfloat16; at most ``MOST_CODES`` codes. With ``learning`` they are overwritten.
        targets: The correct codes.
        factor: Factor of the gradient, one over the number of all tokens for their mean.
        learning: Whether to replace the logits by ``factor`` times the gradient of their cross entropy.
        warps: Warps of a program; by default chosen by the number of codes.
    """
    tokens, codes = logits.shape
    losses = torch.empty(tokens, dtype=torch.float32, device=logits.device)
    wide = triton.next_power_of_2(codes)
    warps = warps or warps_of(wide, logits.element_size())
    with torch.cuda.device_of(logits):
        _cross_entropy_kernel[(tokens,)](logits, targets, losses, factor, codes, wide, learning, num_warps=warps)
    return losses


def warps_of(wide: int, bytes_per_number: int) -> int:
    """Return the warps of a program for so many logits, a power of two, of so many bytes each."""
    return max(1, min(_MOST_WARPS, wide * bytes_per_number // _BYTES_PER_WARP))
