"""Add, normalise and modulate between two blocks for all tokens: see ``aimamba.ops.norm.modulated``.

One Triton kernel forward and two backward: a program handles a few tokens of a row, one after the other. The first
backward kernel adds up their shares of the gradients of gate, shift and scale, the second adds up those of a row.
Results are the same in every run.

Shape letters: B rows, L tokens, D width, G parts that the tokens of a row come in.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from aimamba.ops.norm.triton.sequence import Launch

FORWARD = Launch(tokens=1, warps=4, stages=1)  # these two as measured on an H200, see docs/log.md
BACKWARD = Launch(tokens=16, warps=8, stages=3)
_COLUMNS = 128  # of a program that adds up parts


@triton.jit
@no_type_check
def load(pointer, column, inside):
    """Load some numbers in float32; zeros where they are not ``inside``."""
    return tl.load(pointer + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _modulated_norm_kernel(
    residual, mixed, gate, weight, scale, shift, new_residual, hidden, inverses,
    L, gate_stride, scale_stride, shift_stride, eps,
    D: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, WIDE)
    inside = column < D
    factor = load(weight, column, inside) * (1 + load(scale + row * scale_stride, column, inside))
    offset = load(shift + row * shift_stride, column, inside)
    if ADD:
        opening = load(gate + row * gate_stride, column, inside)
    for index in tl.range(tl.minimum(TOKENS, L - part * TOKENS), num_stages=STAGES):
        token = row * L + part * TOKENS + index
        x = load(residual + token * D, column, inside)
        if ADD:
            x += opening * load(mixed + token * D, column, inside)
            tl.store(new_residual + token * D + column, x, mask=inside)
        inverse = tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
        y = x * inverse * factor + offset
        tl.store(hidden + token * D + column, y.to(hidden.dtype.element_ty), mask=inside)
        tl.store(inverses + token, inverse)


@triton.jit
@no_type_check
def _modulated_norm_backward_kernel(
    dhidden, dnew, residual, mixed, gate, weight, scale, inverses, dresidual, dmixed, sums,
    L, gate_stride, scale_stride,
    D: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, WIDE)
    inside = column < D
    factor = load(weight, column, inside) * (1 + load(scale + row * scale_stride, column, inside))
    if ADD:
        opening = load(gate + row * gate_stride, column, inside)
    dshift = tl.zeros((WIDE,), dtype=tl.float32)
    dfactor = tl.zeros((WIDE,), dtype=tl.float32)
    dgate = tl.zeros((WIDE,), dtype=tl.float32)
    for index in tl.range(tl.minimum(TOKENS, L - part * TOKENS), num_stages=STAGES):
        token = row * L + part * TOKENS + index
        inverse = tl.load(inverses + token)
        gradient = load(dhidden + token * D, column, inside)
        normal = load(residual + token * D, column, inside) * inverse
        dshift += gradient
        dfactor += gradient * normal
        dnormal = gradient * factor
        mean = tl.sum(dnormal * normal, axis=0) / D
        dx = (dnormal - normal * mean) * inverse
        if ADD:
            dx += load(dnew + token * D, column, inside)
            dgate += dx * load(mixed + token * D, column, inside)
            tl.store(dmixed + token * D + column, (dx * opening).to(dmixed.dtype.element_ty), mask=inside)
        tl.store(dresidual + token * D + column, dx, mask=inside)
    sums += (row * tl.num_programs(0) + part) * 3 * D + column
    tl.store(sums, dshift, mask=inside)
    tl.store(sums + D, dfactor, mask=inside)
    tl.store(sums + 2 * D, dgate, mask=inside)


@triton.jit
@no_type_check
def _modulation_sums_kernel(
    sums, weight, scale, dshift, dscale, dgate, dweights, parts, scale_stride,
    D: tl.constexpr, WIDE_G: tl.constexpr, COLUMNS: tl.constexpr, ADD: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Add up the sums of parts: of the shift, the factor and the gate, and with FIRST of the weight of a norm before.

    ``dweights`` (B, D), with FIRST (B, 2, D): the weight, and that of the norm before.
    """
    SUMS: tl.constexpr = 4 if FIRST else 3
    WEIGHTS: tl.constexpr = 2 if FIRST else 1
    row = tl.program_id(1).to(tl.int64)
    column, part = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, WIDE_G)
    inside = column < D
    cell = sums + (row * parts + part)[:, None] * SUMS * D + column[None, :]
    known = (part < parts)[:, None] & inside[None, :]
    total = tl.sum(tl.load(cell, mask=known, other=0.0), axis=0)
    tl.store(dshift + row * D + column, total.to(dshift.dtype.element_ty), mask=inside)
    total = tl.sum(tl.load(cell + D, mask=known, other=0.0), axis=0)
    product = total * load(weight, column, inside)
    tl.store(dscale + row * D + column, product.to(dscale.dtype.element_ty), mask=inside)
    product = total * (1 + load(scale + row * scale_stride, column, inside))
    tl.store(dweights + row * WEIGHTS * D + column, product, mask=inside)
    if ADD:
        total = tl.sum(tl.load(cell + 2 * D, mask=known, other=0.0), axis=0)
        tl.store(dgate + row * D + column, total.to(dgate.dtype.element_ty), mask=inside)
    if FIRST:
        total = tl.sum(tl.load(cell + 3 * D, mask=known, other=0.0), axis=0)
        tl.store(dweights + row * WEIGHTS * D + D + column, total, mask=inside)


def residual_modulated_norm(
    residual: Float[Tensor, "b l d"],
    mixed: Float[Tensor, "b l d"] | None,
    gate: Float[Tensor, "b d"] | None,
    weight: Float[Tensor, " d"],
    scale: Float[Tensor, "b d"],
    shift: Float[Tensor, "b d"],
    *,
    dtype: torch.dtype,
    eps: float,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
    """Compute ``aimamba.ops.norm.modulated.residual_modulated_norm``, the second result in ``dtype``.

    The residual must be float32.
    """
    if torch.compiler.is_compiling():
        new_residual, hidden, _ = _operator(residual, mixed, gate, weight, scale, shift, dtype, eps)
    else:
        new_residual, hidden = _Norm.apply(  # type: ignore[no-untyped-call]
            residual, mixed, gate, weight, scale, shift, dtype, eps
        )
    return (residual if mixed is None else new_residual), hidden


def rows(tensor: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Copy only if the last axis has a stride; the modulations of a block are slices of those of all blocks."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def normalise(
    residual: Tensor,
    mixed: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    dtype: torch.dtype,
    eps: float,
    *,
    launch: Launch = FORWARD,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add, normalise and modulate, without a gradient.

    Returns:
        The new residual, which is empty if there is nothing to add; the normalised and modulated residual; and one over
        its root mean square (B, L).
    """
    new_residual, hidden, inverses = _results(residual, mixed, dtype)
    residual, scale, shift = residual.contiguous(), rows(scale), rows(shift)
    batch, length, width = residual.shape
    add = mixed is not None
    mixed, gate = (mixed.contiguous(), rows(gate)) if mixed is not None and gate is not None else (residual, shift)
    with torch.cuda.device_of(residual):
        _modulated_norm_kernel[(triton.cdiv(length, launch.tokens), batch)](
            residual, mixed, gate, weight, scale, shift, new_residual, hidden, inverses,
            length, gate.stride(0), scale.stride(0), shift.stride(0), eps,
            width, triton.next_power_of_2(width), launch.tokens, launch.stages, add, num_warps=launch.warps,
        )  # fmt: skip
    return new_residual, hidden, inverses


def normalise_backward(
    dnew: Tensor,
    dhidden: Tensor,
    residual: Tensor,
    mixed: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    inverses: Tensor,
    *,
    launch: Launch = BACKWARD,
) -> list[Tensor]:
    """Compute the gradients of ``normalise``.

    Returns:
        The gradients of the residual, the weight, the scale and the shift and, if there was something to add, of what
        was added and of its gate. ``residual`` is the one that was normalised.
    """
    residual, scale, dhidden, dnew = residual.contiguous(), rows(scale), dhidden.contiguous(), dnew.contiguous()
    batch, length, width = residual.shape
    parts = triton.cdiv(length, launch.tokens)
    add = mixed is not None
    unused = residual  # any pointer will do for what is neither read nor written
    dresidual = torch.empty_like(residual)
    dshift, dscale = (scale.new_empty(batch, width) for _ in range(2))
    dmixed, dgate, opening = unused, unused, scale
    if mixed is not None and gate is not None:
        mixed, opening = mixed.contiguous(), rows(gate)
        dmixed, dgate = torch.empty_like(mixed), gate.new_empty(batch, width)
    sums = residual.new_empty(batch, parts, 3, width)
    with torch.cuda.device_of(residual):
        _modulated_norm_backward_kernel[(parts, batch)](
            dhidden, dnew if add else unused, residual, mixed if add else unused, opening, weight, scale, inverses,
            dresidual, dmixed, sums, length, opening.stride(0), scale.stride(0),
            width, triton.next_power_of_2(width), launch.tokens, launch.stages, add, num_warps=launch.warps,
        )  # fmt: skip
        dweight, *_ = add_up(sums, weight, scale, dshift, dscale, dgate if add else None)
    found = [dresidual, dweight.to(weight.dtype), dscale, dshift]
    return [*found, dmixed, dgate] if add else found


def add_up(
    sums: Float[Tensor, "b g s d"],
    weight: Float[Tensor, " d"],
    scale: Float[Tensor, "b d"],
    dshift: Float[Tensor, "b d"],
    dscale: Float[Tensor, "b d"],
    dgate: Float[Tensor, "b d"] | None,
) -> Float[Tensor, "w d"]:
    """Add up the sums of parts and write the gradients of shift, scale and gate.

    Returns:
        The gradient of the weight and, if there is a fourth sum, that of the weight of a norm before this one.
    """
    batch, parts, number, width = sums.shape
    dweights = sums.new_empty(batch, number - 2, width)
    _modulation_sums_kernel[(triton.cdiv(width, _COLUMNS), batch)](
        sums, weight, scale, dshift, dscale, dshift if dgate is None else dgate, dweights, parts, scale.stride(0),
        width, triton.next_power_of_2(parts), _COLUMNS, dgate is not None, number == 4, num_warps=4,
    )  # fmt: skip
    return dweights.sum(dim=0)


def _results(residual: Tensor, mixed: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    new_residual = residual.new_empty(0 if mixed is None else residual.shape)
    return new_residual, residual.new_empty(residual.shape, dtype=dtype), residual.new_empty(residual.shape[:2])


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = normalise(*inputs)
        _save(ctx, inputs, output)
        return output[:2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnew: Tensor, dhidden: Tensor) -> tuple[Tensor | None, ...]:
        return _arranged(normalise_backward(dnew, dhidden, *ctx.saved_tensors))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    residual, mixed, gate, weight, scale, *_ = inputs
    new_residual, _, inverses = output
    ctx.save_for_backward(residual if mixed is None else new_residual, mixed, gate, weight, scale, inverses)


def _arranged(found: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Return gradients in the order of the arguments of the forward pass."""
    dresidual, dweight, dscale, dshift, *added = found
    dmixed, dgate = added or (None, None)
    return dresidual, dmixed, dgate, dweight, dscale, dshift, None, None


# Operators for the compiler. Their schemas leave the launch layouts out.
_operator = torch.library.custom_op(
    "aimamba::residual_modulated_norm",
    normalise,
    mutates_args=(),
    schema="(Tensor residual, Tensor? mixed, Tensor? gate, Tensor weight, Tensor scale, Tensor shift, "
    "ScalarType dtype, float eps) -> (Tensor, Tensor, Tensor)",
)
_backward_operator = torch.library.custom_op(
    "aimamba::residual_modulated_norm_backward",
    normalise_backward,
    mutates_args=(),
    schema="(Tensor dnew, Tensor dhidden, Tensor residual, Tensor? mixed, Tensor? gate, Tensor weight, Tensor scale, "
    "Tensor inverses) -> Tensor[]",
)


@_operator.register_fake
def _(residual: Tensor, mixed: Tensor | None, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _results(residual, mixed, others[-2])


@_backward_operator.register_fake
def _(_new: Tensor, _hidden: Tensor, residual: Tensor, *others: Tensor | None) -> list[Tensor]:
    mixed, gate, weight, scale, _ = others
    given = (residual, weight, scale, scale, mixed, gate)
    return [tensor.new_empty(tensor.shape) for tensor in given if tensor is not None]


def _gradients(ctx: Any, dnew: Tensor, dhidden: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return _arranged(_backward_operator(dnew, dhidden, *ctx.saved_tensors))


_operator.register_autograd(_gradients, setup_context=_save)
