"""What follows the last block, for all tokens: see ``aimamba.ops.norm.final``.

One Triton kernel forward and two backward, built as those of ``modulated``. Results are the same in every run.

Shape letters: B rows, L tokens, D width, G parts that the tokens of a row come in.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from aimamba.ops.norm.triton.modulated import add_up, load, rows
from aimamba.ops.norm.triton.sequence import Launch

FORWARD = Launch(tokens=1, warps=4, stages=1)  # as the kernels of ``modulated``, of which these read as much
BACKWARD = Launch(tokens=16, warps=8, stages=3)


@triton.jit
@no_type_check
def _final_norm_kernel(
    residual, mixed, gate, norm_weight, final_weight, scale, shift, new_residual, hidden, inverses,
    L, gate_stride, scale_stride, shift_stride, eps,
    D: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, WIDE)
    inside = column < D
    first_factor = load(norm_weight, column, inside)
    factor = load(final_weight, column, inside) * (1 + load(scale + row * scale_stride, column, inside))
    offset = load(shift + row * shift_stride, column, inside)
    opening = load(gate + row * gate_stride, column, inside)
    for index in tl.range(tl.minimum(TOKENS, L - part * TOKENS), num_stages=STAGES):
        token = row * L + part * TOKENS + index
        x = load(residual + token * D, column, inside) + opening * load(mixed + token * D, column, inside)
        first = tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
        once = x * first * first_factor
        second = tl.rsqrt(tl.sum(once * once, axis=0) / D + eps)
        y = once * second * factor + offset
        tl.store(new_residual + token * D + column, x, mask=inside)
        tl.store(hidden + token * D + column, y.to(hidden.dtype.element_ty), mask=inside)
        tl.store(inverses + 2 * token, first)
        tl.store(inverses + 2 * token + 1, second)


@triton.jit
@no_type_check
def _final_norm_backward_kernel(
    dhidden, dnew, residual, mixed, gate, norm_weight, final_weight, scale, inverses, dresidual, dmixed, sums,
    L, gate_stride, scale_stride,
    D: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr, NEW: tl.constexpr,
):  # fmt: skip
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, WIDE)
    inside = column < D
    first_factor = load(norm_weight, column, inside)
    factor = load(final_weight, column, inside) * (1 + load(scale + row * scale_stride, column, inside))
    opening = load(gate + row * gate_stride, column, inside)
    dshift = tl.zeros((WIDE,), dtype=tl.float32)
    dfactor = tl.zeros((WIDE,), dtype=tl.float32)
    dgate = tl.zeros((WIDE,), dtype=tl.float32)
    dfirst_factor = tl.zeros((WIDE,), dtype=tl.float32)
    for index in tl.range(tl.minimum(TOKENS, L - part * TOKENS), num_stages=STAGES):
        token = row * L + part * TOKENS + index
        first, second = tl.load(inverses + 2 * token), tl.load(inverses + 2 * token + 1)
        gradient = load(dhidden + token * D, column, inside)
        normal = load(residual + token * D, column, inside) * first
        twice = normal * first_factor * second  # the result of the second norm, without its weight
        dshift += gradient
        dfactor += gradient * twice
        dtwice = gradient * factor
        donce = (dtwice - twice * (tl.sum(dtwice * twice, axis=0) / D)) * second
        dfirst_factor += donce * normal
        dnormal = donce * first_factor
        dx = (dnormal - normal * (tl.sum(dnormal * normal, axis=0) / D)) * first
        if NEW:
            dx += load(dnew + token * D, column, inside)
        dgate += dx * load(mixed + token * D, column, inside)
        tl.store(dmixed + token * D + column, (dx * opening).to(dmixed.dtype.element_ty), mask=inside)
        tl.store(dresidual + token * D + column, dx, mask=inside)
    sums += (row * tl.num_programs(0) + part) * 4 * D + column
    tl.store(sums, dshift, mask=inside)
    tl.store(sums + D, dfactor, mask=inside)
    tl.store(sums + 2 * D, dgate, mask=inside)
    tl.store(sums + 3 * D, dfirst_factor, mask=inside)


def final_norm(
    residual: Float[Tensor, "b l d"],
    mixed: Float[Tensor, "b l d"],
    gate: Float[Tensor, "b d"],
    norm_weight: Float[Tensor, " d"],
    final_weight: Float[Tensor, " d"],
    scale: Float[Tensor, "b d"],
    shift: Float[Tensor, "b d"],
    *,
    dtype: torch.dtype,
    eps: float,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
    """Compute ``aimamba.ops.norm.final.final_norm``, the second result in ``dtype``. The residual must be float32."""
    found: tuple[Tensor, Tensor] = _FinalNorm.apply(  # type: ignore[no-untyped-call]
        residual, mixed, gate, norm_weight, final_weight, scale, shift, dtype, eps
    )
    return found


class _FinalNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        mixed, gate, norm_weight, final_weight, scale, shift, dtype, eps = others
        ctx.set_materialize_grads(False)  # nothing but the norm may read the residual
        residual, mixed = residual.contiguous(), mixed.contiguous()
        gate, scale, shift = rows(gate), rows(scale), rows(shift)
        batch, length, width = residual.shape
        new_residual, hidden = torch.empty_like(residual), torch.empty_like(residual, dtype=dtype)
        inverses = residual.new_empty(batch, length, 2)
        with torch.cuda.device_of(residual):
            _final_norm_kernel[(triton.cdiv(length, FORWARD.tokens), batch)](
                residual, mixed, gate, norm_weight, final_weight, scale, shift, new_residual, hidden, inverses,
                length, gate.stride(0), scale.stride(0), shift.stride(0), eps,
                width, triton.next_power_of_2(width), FORWARD.tokens, FORWARD.stages, num_warps=FORWARD.warps,
            )  # fmt: skip
        ctx.save_for_backward(new_residual, mixed, gate, norm_weight, final_weight, scale, inverses)
        return new_residual, hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnew: Tensor | None, dhidden: Tensor | None) -> tuple[Tensor | None, ...]:
        residual, mixed, gate, norm_weight, final_weight, scale, inverses = ctx.saved_tensors
        dhidden = torch.zeros_like(mixed) if dhidden is None else dhidden.contiguous()
        batch, length, width = residual.shape
        parts = triton.cdiv(length, BACKWARD.tokens)
        dresidual, dmixed = torch.empty_like(residual), torch.empty_like(mixed)
        dgate, dscale, dshift = (like.new_empty(batch, width) for like in (gate, scale, scale))
        sums = residual.new_empty(batch, parts, 4, width)
        with torch.cuda.device_of(residual):
            _final_norm_backward_kernel[(parts, batch)](
                dhidden, residual if dnew is None else dnew.contiguous(), residual, mixed, gate, norm_weight,
                final_weight, scale, inverses, dresidual, dmixed, sums, length, gate.stride(0), scale.stride(0),
                width, triton.next_power_of_2(width), BACKWARD.tokens, BACKWARD.stages, dnew is not None,
                num_warps=BACKWARD.warps,
            )  # fmt: skip
            dfinal, dnorm = add_up(sums, final_weight, scale, dshift, dscale, dgate)
        return dresidual, dmixed, dgate, dnorm, dfinal, dscale, dshift, None, None
