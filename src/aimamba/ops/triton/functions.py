"""Functions of numbers that the kernels of several operators share. Importing this module imports Triton."""

from typing import no_type_check

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def sigmoid(x):
    """Return ``1 / (1 + exp(-x))``, in half the instructions of exp, which keeps denormal numbers, and a division."""
    root = tl.rsqrt(1 + tl.exp2(x * -LOG2_E))
    return root * root


@triton.jit
@no_type_check
def silu(x):
    """Return ``x sigmoid(x)``."""
    return x * sigmoid(x)


@triton.jit
@no_type_check
def silu_slope(x):
    """Return the derivative of ``silu``."""
    opening = sigmoid(x)
    return opening * (1 + x * (1 - opening))


@triton.jit
@no_type_check
def softplus(x):
    """Return ``log(1 + exp(x))``; the quotient corrects the rounding of ``1 + small``, which small steps need."""
    small = tl.exp(-tl.abs(x))
    one = 1 + small
    exact = tl.where(one == 1, small, tl.log(one) * (small / tl.where(one == 1, 1.0, one - 1)))
    return tl.maximum(x, 0.0) + exact
