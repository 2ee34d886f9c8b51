"""Add, normalise and modulate between two blocks for all tokens: see ``aimamba.ops.norm.modulated``.

After the last block there are two norms, one after the other: BEFORE is whether there is one before the modulated one.
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

FORWARD = Launch(tokens=1, numbers=8, stages=1)  # these two as measured on an H200, see docs/log.md
BACKWARD = Launch(tokens=16, numbers=4, stages=3)
_COLUMNS = 128  # of a program that adds up parts


@triton.jit
@no_type_check
def _load(pointer, column, inside):
    """Load some numbers in float32; zeros where they are not ``inside``."""
    return tl.load(pointer + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _modulated_norm_kernel(
    residual, mixed, gate, weight, scale, shift, before, new_residual, hidden, inverses, firsts,
    L, gate_stride, scale_stride, shift_stride, eps,
    D: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr, ADD: tl.constexpr,
    BEFORE: tl.constexpr,
):  # fmt: skip
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, WIDE)
    inside = column < D
    factor = _load(weight, column, inside) * (1 + _load(scale + row * scale_stride, column, inside))
    offset = _load(shift + row * shift_stride, column, inside)
    if ADD:
        opening = _load(gate + row * gate_stride, column, inside)
    if BEFORE:
        first_factor = _load(before, column, inside)
    for index in tl.range(tl.minimum(TOKENS, L - part * TOKENS), num_stages=STAGES):
        token = row * L + part * TOKENS + index
        x = _load(residual + token * D, column, inside)
        if ADD:
            x += opening * _load(mixed + token * D, column, inside)
            tl.store(new_residual + token * D + column, x, mask=inside)
        if BEFORE:
            first = tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
            tl.store(firsts + token, first)
            x = x * first * first_factor
        inverse = tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
        y = x * inverse * factor + offset
        tl.store(hidden + token * D + column, y.to(hidden.dtype.element_ty), mask=inside)
        tl.store(inverses + token, inverse)


@triton.jit
@no_type_check
def _modulated_norm_backward_kernel(
    dhidden, dnew, residual, mixed, gate, weight, scale, before, inverses, firsts, dresidual, dmixed, sums,
    L, gate_stride, scale_stride,
    D: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr, ADD: tl.constexpr,
    NEW: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, WIDE)
    inside = column < D
    factor = _load(weight, column, inside) * (1 + _load(scale + row * scale_stride, column, inside))
    if ADD:
        opening = _load(gate + row * gate_stride, column, inside)
    if BEFORE:
        first_factor = _load(before, column, inside)
        dfirst_factor = tl.zeros((WIDE,), dtype=tl.float32)
    dshift = tl.zeros((WIDE,), dtype=tl.float32)
    dfactor = tl.zeros((WIDE,), dtype=tl.float32)
    dgate = tl.zeros((WIDE,), dtype=tl.float32)
    for index in tl.range(tl.minimum(TOKENS, L - part * TOKENS), num_stages=STAGES):
        token = row * L + part * TOKENS + index
        inverse = tl.load(inverses + token)
        gradient = _load(dhidden + token * D, column, inside)
        x = _load(residual + token * D, column, inside)
        if BEFORE:
            first = tl.load(firsts + token)
            first_normal = x * first
            x = first_normal * first_factor
        normal = x * inverse
        dshift += gradient
        dfactor += gradient * normal
        dnormal = gradient * factor
        mean = tl.sum(dnormal * normal, axis=0) / D
        dx = (dnormal - normal * mean) * inverse
        if BEFORE:
            dfirst_factor += dx * first_normal
            dnormal = dx * first_factor
            mean = tl.sum(dnormal * first_normal, axis=0) / D
            dx = (dnormal - first_normal * mean) * first
        if NEW:
            dx += _load(dnew + token * D, column, inside)
        if ADD:
            dgate += dx * _load(mixed + token * D, column, inside)
            tl.store(dmixed + token * D + column, (dx * opening).to(dmixed.dtype.element_ty), mask=inside)
        tl.store(dresidual + token * D + column, dx, mask=inside)
    sums += (row * tl.num_programs(0) + part) * (4 if BEFORE else 3) * D + column
    tl.store(sums, dshift, mask=inside)
    tl.store(sums + D, dfactor, mask=inside)
    tl.store(sums + 2 * D, dgate, mask=inside)
    if BEFORE:
        tl.store(sums + 3 * D, dfirst_factor, mask=inside)


@triton.jit
@no_type_check
def _modulation_sums_kernel(
    sums, weight, scale, dshift, dscale, dgate, dweights, dbefores, parts, scale_stride,
    D: tl.constexpr, WIDE_G: tl.constexpr, COLUMNS: tl.constexpr, ADD: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    column, part = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, WIDE_G)
    inside = column < D
    cell = sums + (row * parts + part)[:, None] * (4 if BEFORE else 3) * D + column[None, :]
    known = (part < parts)[:, None] & inside[None, :]
    total = tl.sum(tl.load(cell, mask=known, other=0.0), axis=0)
    tl.store(dshift + row * D + column, total.to(dshift.dtype.element_ty), mask=inside)
    total = tl.sum(tl.load(cell + D, mask=known, other=0.0), axis=0)
    product = total * _load(weight, column, inside)
    tl.store(dscale + row * D + column, product.to(dscale.dtype.element_ty), mask=inside)
    product = total * (1 + _load(scale + row * scale_stride, column, inside))
    tl.store(dweights + row * D + column, product, mask=inside)
    if ADD:
        total = tl.sum(tl.load(cell + 2 * D, mask=known, other=0.0), axis=0)
        tl.store(dgate + row * D + column, total.to(dgate.dtype.element_ty), mask=inside)
    if BEFORE:
        total = tl.sum(tl.load(cell + 3 * D, mask=known, other=0.0), axis=0)
        tl.store(dbefores + row * D + column, total, mask=inside)


def residual_modulated_norm(
    residual: Float[Tensor, "b l d"],
    mixed: Float[Tensor, "b l d"] | None,
    gate: Float[Tensor, "b d"] | None,
    weight: Float[Tensor, " d"],
    scale: Float[Tensor, "b d"],
    shift: Float[Tensor, "b d"],
    before: Float[Tensor, " d"] | None = None,
    *,
    dtype: torch.dtype,
    eps: float,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
    """Compute ``aimamba.ops.norm.modulated.residual_modulated_norm``, the second result in ``dtype``.

    The residual must be float32.
    """
    if torch.compiler.is_compiling():
        new_residual, hidden, _ = _operator(residual, mixed, gate, weight, scale, shift, before, dtype, eps)
    else:
        new_residual, hidden = _Norm.apply(  # type: ignore[no-untyped-call]
            residual, mixed, gate, weight, scale, shift, before, dtype, eps
        )
    return (residual if mixed is None else new_residual), hidden


def _rows(tensor: Tensor) -> Tensor:
    """Copy only if the last axis has a stride; the modulations of a block are slices of those of all blocks."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def normalise(
    residual: Tensor,
    mixed: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    before: Tensor | None,
    dtype: torch.dtype,
    eps: float,
    *,
    launch: Launch = FORWARD,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add, normalise and modulate, without a gradient.

    Returns:
        The new residual, which is empty if there is nothing to add; the normalised and modulated residual; and one over
        the root mean square of what each norm reads, (1, B, L), with a norm before (2, B, L).
    """
    new_residual, hidden, inverses = _results(residual, mixed, before, dtype)
    residual, scale, shift = residual.contiguous(), _rows(scale), _rows(shift)
    batch, length, width = residual.shape
    wide = triton.next_power_of_2(width)
    add = mixed is not None
    mixed, gate = (mixed.contiguous(), _rows(gate)) if mixed is not None and gate is not None else (residual, shift)
    with torch.cuda.device_of(residual):
        _modulated_norm_kernel[(triton.cdiv(length, launch.tokens), batch)](
            residual, mixed, gate, weight, scale, shift, weight if before is None else before,
            new_residual, hidden, inverses[0], inverses[-1],
            length, gate.stride(0), scale.stride(0), shift.stride(0), eps,
            width, wide, launch.tokens, launch.stages, add, before is not None, **launch.options(wide),
        )  # fmt: skip
    return new_residual, hidden, inverses


def normalise_backward(
    dnew: Tensor | None,
    dhidden: Tensor,
    residual: Tensor,
    mixed: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    before: Tensor | None,
    inverses: Tensor,
    *,
    launch: Launch = BACKWARD,
) -> list[Tensor]:
    """Compute the gradients of ``normalise``.

    Returns:
        The gradients of the residual, the weight, the scale and the shift; if there was something to add, of what was
        added and of its gate; and of the weight of a norm before. ``residual`` is the one that was normalised.
    """
    residual, scale, dhidden = residual.contiguous(), _rows(scale), dhidden.contiguous()
    batch, length, width = residual.shape
    parts, wide = triton.cdiv(length, launch.tokens), triton.next_power_of_2(width)
    add = mixed is not None
    unused = residual  # any pointer will do for what is neither read nor written
    dnew = dnew.contiguous() if add and dnew is not None else None
    dresidual = torch.empty_like(residual)
    dshift, dscale = (scale.new_empty(batch, width) for _ in range(2))
    dmixed, dgate, opening = unused, unused, scale
    if mixed is not None and gate is not None:
        mixed, opening = mixed.contiguous(), _rows(gate)
        dmixed, dgate = torch.empty_like(mixed), gate.new_empty(batch, width)
    norms = len(inverses)
    sums, dweights = residual.new_empty(batch, parts, 2 + norms, width), residual.new_empty(norms, batch, width)
    with torch.cuda.device_of(residual):
        _modulated_norm_backward_kernel[(parts, batch)](
            dhidden, unused if dnew is None else dnew, residual, unused if mixed is None else mixed, opening,
            weight, scale, weight if before is None else before, inverses[0], inverses[-1], dresidual, dmixed, sums,
            length, opening.stride(0), scale.stride(0), width, wide,
            launch.tokens, launch.stages, add, dnew is not None, before is not None, **launch.options(wide),
        )  # fmt: skip
        _modulation_sums_kernel[(triton.cdiv(width, _COLUMNS), batch)](
            sums, weight, scale, dshift, dscale, dgate, dweights[0], dweights[-1], parts, scale.stride(0),
            width, triton.next_power_of_2(parts), _COLUMNS, add, before is not None, num_warps=4,
        )  # fmt: skip
    dweight, *dbefore = dweights.sum(dim=1).to(weight.dtype).unbind()
    return [dresidual, dweight, dscale, dshift, *([dmixed, dgate] if add else []), *dbefore]


def _results(
    residual: Tensor, mixed: Tensor | None, before: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    new_residual = residual.new_empty(0 if mixed is None else residual.shape)
    inverses = residual.new_empty(1 if before is None else 2, *residual.shape[:2])
    return new_residual, residual.new_empty(residual.shape, dtype=dtype), inverses


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # after the last block nothing else may read the residual
        output = normalise(*inputs)
        _save(ctx, inputs, output)
        return output[:2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnew: Tensor | None, dhidden: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if dhidden is None:
            dhidden = torch.zeros_like(saved[0])
        return _arranged(normalise_backward(dnew, dhidden, *saved), saved)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    residual, mixed, gate, weight, scale, _, before, *_ = inputs
    new_residual, _, inverses = output
    ctx.save_for_backward(residual if mixed is None else new_residual, mixed, gate, weight, scale, before, inverses)


def _arranged(found: list[Tensor], saved: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Return gradients in the order of the arguments of the forward pass."""
    _, mixed, _, _, _, before, _ = saved
    rest = iter(found)
    dresidual, dweight, dscale, dshift = (next(rest) for _ in range(4))
    dmixed, dgate = (None if mixed is None else next(rest) for _ in range(2))
    return dresidual, dmixed, dgate, dweight, dscale, dshift, None if before is None else next(rest), None, None


# Operators for the compiler. Their schemas leave the launch layouts out.
_operator = torch.library.custom_op(
    "aimamba::residual_modulated_norm",
    normalise,
    mutates_args=(),
    schema="(Tensor residual, Tensor? mixed, Tensor? gate, Tensor weight, Tensor scale, Tensor shift, Tensor? before, "
    "ScalarType dtype, float eps) -> (Tensor, Tensor, Tensor)",
)
_backward_operator = torch.library.custom_op(
    "aimamba::residual_modulated_norm_backward",
    normalise_backward,
    mutates_args=(),
    schema="(Tensor? dnew, Tensor dhidden, Tensor residual, Tensor? mixed, Tensor? gate, Tensor weight, Tensor scale, "
    "Tensor? before, Tensor inverses) -> Tensor[]",
)


@_operator.register_fake
def _(residual: Tensor, mixed: Tensor | None, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, before, dtype, _ = others
    return _results(residual, mixed, before, dtype)


@_backward_operator.register_fake
def _(_new: Tensor | None, _hidden: Tensor, residual: Tensor, *others: Tensor | None) -> list[Tensor]:
    mixed, gate, weight, scale, before, _ = others
    given = (residual, weight, scale, scale, mixed, gate, before)
    return [tensor.new_empty(tensor.shape) for tensor in given if tensor is not None]


def _gradients(ctx: Any, dnew: Tensor, dhidden: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return _arranged(_backward_operator(dnew, dhidden, *ctx.saved_tensors), ctx.saved_tensors)


_operator.register_autograd(_gradients, setup_context=_save)
