"""Matrix products with few rows as Triton kernels, which read every weight once and are bound by that.

A program computes some outputs from all inputs, so a weight is loaded once and no sum is split. In
``residual_linear_step`` every program computes the norm of the rows again while its weights are being loaded, which
costs less than waiting for another kernel. More than ``MOST_ROWS`` rows go to torch.

Shape letters: B rows, D inputs, O outputs, G partial sums.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops.norm.triton.residual import residual_norm_step


class Launch(NamedTuple):
    """How a kernel is launched on the device. Changes speed, and results by no more than rounding.

    Attributes:
        numbers: Numbers of the weight that a program holds, a power of two.
        warps: Warps of a program.
    """

    numbers: int
    warps: int


MOST_ROWS = 4
DEFAULT = Launch(numbers=16384, warps=8)  # 32 KiB of bfloat16 in flight on every multiprocessor hide the latency


@triton.jit
@no_type_check
def _linear_kernel(
    x, weight, y, outputs,
    ROWS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, WIDE)
    inside = (output < outputs)[:, None] & (column < D)[None, :]
    tile = tl.load(weight + output[:, None] * D + column[None, :], mask=inside, other=0.0).to(tl.float32)
    for row in tl.static_range(ROWS):
        values = tl.load(x + row * D + column, mask=column < D, other=0.0).to(tl.float32)
        sums = tl.sum(tile * values[None, :], axis=1)
        tl.store(y + row * outputs + output, sums.to(y.dtype.element_ty), mask=output < outputs)


@triton.jit
@no_type_check
def _residual_kernel(
    residual, norm_weight, shift, scale, mixed, gate, squares, weight, y, new_residual,
    shift_stride, scale_stride, gate_stride, parts, inner, eps, outputs,
    ROWS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
    ADD: tl.constexpr, DIVIDE: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) == 0
    output = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, WIDE)
    known = column < D
    inside = (output < outputs)[:, None] & known[None, :]
    tile = tl.load(weight + output[:, None] * D + column[None, :], mask=inside, other=0.0)  # loads during the norm
    scales = tl.load(norm_weight + column, mask=known, other=0.0)
    for row in tl.static_range(ROWS):
        values = tl.load(residual + row * D + column, mask=known, other=0.0)
        if ADD:
            factor = tl.load(gate + row * gate_stride + column, mask=known, other=0.0).to(tl.float32)
            if DIVIDE:
                part = tl.arange(0, PARTS)
                total = tl.sum(tl.load(squares + row * parts + part, mask=part < parts, other=0.0), axis=0)
                factor *= tl.rsqrt(total / inner + eps)
            values += factor * tl.load(mixed + row * D + column, mask=known, other=0.0).to(tl.float32)
        tl.store(new_residual + row * D + column, values, mask=known & first)
        values *= tl.rsqrt(tl.sum(values * values, axis=0) / D + eps) * scales
        values *= 1 + tl.load(scale + row * scale_stride + column, mask=known, other=0.0).to(tl.float32)
        values += tl.load(shift + row * shift_stride + column, mask=known, other=0.0).to(tl.float32)
        sums = tl.sum(tile.to(tl.float32) * values[None, :], axis=1)
        tl.store(y + row * outputs + output, sums.to(y.dtype.element_ty), mask=output < outputs)


def linear(x: Float[Tensor, "b d"], weight: Float[Tensor, "o d"], *, launch: Launch = DEFAULT) -> Float[Tensor, "b o"]:
    """Compute ``aimamba.ops.linear.linear.linear``."""
    rows, (outputs, inputs) = x.shape[0], weight.shape
    if rows > MOST_ROWS:
        return F.linear(x, weight)
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    wide = triton.next_power_of_2(inputs)
    block = max(1, launch.numbers // wide)
    _linear_kernel[(triton.cdiv(outputs, block),)](
        x.contiguous(), weight, y, outputs, rows, inputs, wide, block, num_warps=launch.warps
    )
    return y


def residual_linear_step(
    residual: Float[Tensor, "b d"],
    norm_weight: Float[Tensor, " d"],
    shift: Float[Tensor, "b d"],
    scale: Float[Tensor, "b d"],
    weight: Float[Tensor, "o d"],
    *,
    mixed: Float[Tensor, "b d"] | None = None,
    gate: Float[Tensor, "b d"] | None = None,
    squares: Float[Tensor, "b g"] | None = None,
    inner: int = 1,
    eps: float = 1e-5,
    launch: Launch = DEFAULT,
) -> tuple[Float[Tensor, "b o"], Float[Tensor, "b d"]]:
    """Compute ``aimamba.ops.linear.residual.residual_linear_step``; the residual must be float32.

    With few rows ``residual`` is not changed, because programs read it while one of them writes the new one.
    """
    rows, (outputs, inputs) = residual.shape[0], weight.shape
    if rows > MOST_ROWS:
        hidden = residual_norm_step(
            residual, norm_weight, shift, scale, mixed=mixed, gate=gate, squares=squares, inner=inner, eps=eps
        )
        return F.linear(hidden, weight), residual
    y = torch.empty(rows, outputs, dtype=shift.dtype, device=residual.device)
    new_residual = residual if mixed is None else torch.empty_like(residual)
    wide = triton.next_power_of_2(inputs)
    block = max(1, launch.numbers // wide)
    parts = 1 if squares is None else squares.shape[1]
    gate = shift if gate is None else gate  # any pointer will do for what is not read
    _residual_kernel[(triton.cdiv(outputs, block),)](
        residual, norm_weight, shift, scale,
        shift if mixed is None else mixed, gate, residual if squares is None else squares, weight, y, new_residual,
        shift.stride(0), scale.stride(0), gate.stride(0), parts, inner, eps, outputs,
        rows, inputs, wide, block, triton.next_power_of_2(parts),
        mixed is not None, squares is not None,
        num_warps=launch.warps,
    )  # fmt: skip
    return y, new_residual
