"""The norm between two blocks as one Triton kernel: see ``aimamba.ops.norm.residual``.

A program handles one row. With ``overlap`` a kernel starts while the one before it still runs (programmatic dependent
launch); until it has waited for that one, it reads only weights, shift, scale and gate.

Shape letters: B rows, D width, G partial sums, S parts of a product.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.triton import overlap_options


class Launch(NamedTuple):
    """How the kernel is launched on the device: warps of a program. Changes speed, and results by rounding at most."""

    warps: int


DEFAULT = Launch(warps=8)


@triton.jit
@no_type_check
def _normalise(x, weight, D: tl.constexpr, eps):
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / D + eps) * weight


@triton.jit
@no_type_check
def _norm_step_kernel(
    residual, norm_weight, final_weight, shift, scale, mixed, gate, squares, hidden,
    shift_stride, scale_stride, gate_stride, parts, inner, eps,
    D: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
    ADD: tl.constexpr, SPLITS: tl.constexpr, DIVIDE: tl.constexpr, FINAL: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    weight = tl.load(norm_weight + column, mask=inside, other=0.0)
    scales = tl.load(scale + row * scale_stride + column, mask=inside, other=0.0).to(tl.float32)
    shifts = tl.load(shift + row * shift_stride + column, mask=inside, other=0.0).to(tl.float32)
    if FINAL:
        last_weight = tl.load(final_weight + column, mask=inside, other=0.0)
    if ADD:
        factor = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x = tl.load(residual + row * D + column, mask=inside, other=0.0)
    if ADD:
        if DIVIDE:
            part = tl.arange(0, PARTS)
            total = tl.sum(tl.load(squares + row * parts + part, mask=part < parts, other=0.0), axis=0)
            factor *= tl.rsqrt(total / inner + eps)
        added = tl.zeros((BLOCK,), dtype=tl.float32)
        for part in tl.static_range(SPLITS):
            place = (part * tl.num_programs(0) + row) * D
            added += tl.load(mixed + place + column, mask=inside, other=0.0).to(tl.float32)
        x += factor * added
        tl.store(residual + row * D + column, x, mask=inside)
    y = _normalise(x, weight, D, eps)
    if FINAL:
        y = _normalise(y, last_weight, D, eps)
    y = y * (1 + scales) + shifts
    tl.store(hidden + row * D + column, y.to(hidden.dtype.element_ty), mask=inside)


def residual_norm_step(
    residual: Float[Tensor, "b d"],
    norm_weight: Float[Tensor, " d"],
    shift: Float[Tensor, "b d"],
    scale: Float[Tensor, "b d"],
    *,
    mixed: Float[Tensor, "*s b d"] | None = None,
    gate: Float[Tensor, "b d"] | None = None,
    squares: Float[Tensor, "b g"] | None = None,
    inner: int = 1,
    final_weight: Float[Tensor, " d"] | None = None,
    eps: float = 1e-5,
    launch: Launch = DEFAULT,
    overlap: bool = False,
) -> Float[Tensor, "b d"]:
    """Compute ``aimamba.ops.norm.residual.residual_norm_step``; the residual must be float32.

    With ``overlap`` the weights, shift, scale and gate must not have been written by the kernel launched just before.
    """
    rows, width = residual.shape
    hidden = torch.empty(rows, width, dtype=shift.dtype, device=residual.device)
    parts = 1 if squares is None else squares.shape[1]
    gate = shift if gate is None else gate  # any pointer will do for what is not read
    options = overlap_options(residual, overlap)
    _norm_step_kernel[(rows,)](
        residual, norm_weight, norm_weight if final_weight is None else final_weight,
        shift, scale, shift if mixed is None else mixed, gate, residual if squares is None else squares, hidden,
        shift.stride(0), scale.stride(0), gate.stride(0), parts, inner, eps,
        width, triton.next_power_of_2(width), triton.next_power_of_2(parts),
        mixed is not None, len(mixed) if mixed is not None and mixed.ndim > residual.ndim else 1,
        squares is not None, final_weight is not None, bool(options),
        num_warps=launch.warps, **options,
    )  # fmt: skip
    return hidden
