"""Matrix products with few rows as Triton kernels, which read every weight once and are bound by that.

A program computes a span of outputs from all inputs, so a weight is loaded once. Each of its warps takes some outputs;
where a thread could not keep its numbers of the rows in registers, several warps share an output. There are about as
many programs as multiprocessors. A program reads its weights a tile at a time, two tiles ahead, and the first two
before anything else: in ``residual_linear_step``, where every program computes the norm of the rows again, they arrive
during the norm. With ``overlap`` they arrive while the kernel before still runs (programmatic dependent launch); until
a kernel has waited for that one, it reads only weights, shift, scale and gate. More than ``MOST_ROWS`` rows go to
torch.

Shape letters: B rows, D inputs, O outputs, G partial sums, S parts of a product. SHARES, PARTS and LANES are the axes
of the inputs.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops.norm.triton.residual import residual_norm_step
from aimamba.ops.triton import overlap_options, processors


class Launch(NamedTuple):
    """How a kernel is launched on the device. Changes speed, and results by no more than rounding.

    Attributes:
        numbers: Numbers of the weight in one tile, a power of two, if they have 2 bytes; half as many if they have 4.
        warps: Warps of a program.
    """

    numbers: int
    warps: int


MOST_ROWS = 4
DEFAULT = Launch(numbers=16384, warps=8)  # as measured on an H200, see docs/log.md
MANY_OUTPUTS = Launch(numbers=4096, warps=2)  # likewise, for the head
_MANY = 100  # outputs for each multiprocessor
_MOST_NUMBERS = 4096  # normalised numbers, of all rows, that the threads of a warp can keep in registers
_LANES = 256  # columns that a warp reads at once, 16 bytes a thread
_MOST_TILES = 9  # of a program, if no warps share an output
_TILE = 128  # rows and outputs that a multiprocessor takes of a product with many rows
_MOST_PARTS, _FEWEST_INPUTS = 4, 128  # of a product that is split, and of a part


@triton.jit
@no_type_check
def _columns(SHARES: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr):
    """Return the columns of a tile, (SHARES, PARTS, LANES): those of a part side by side, and the parts of a share."""
    part = tl.arange(0, SHARES)[:, None] * PARTS + tl.arange(0, PARTS)[None, :]
    return part[:, :, None] * LANES + tl.arange(0, LANES)[None, None, :]


@triton.jit
@no_type_check
def _read_tile(
    weight, first, end,
    D: tl.constexpr, SHARES: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return weights of some outputs, (SHARES, PARTS, BLOCK, LANES); zeros from ``end`` on."""
    output = (first + tl.arange(0, BLOCK))[None, None, :, None]
    column = _columns(SHARES, PARTS, LANES)[:, :, None, :]
    # The hint sets the order of the axes alone: warps take different outputs, and what is left of them different shares
    # of the columns, so that sums need no exchange among warps, or but one at the end.
    pointer = tl.max_contiguous(weight + output * D + column, (2, 1, 4, LANES))
    return tl.load(pointer, mask=(output < end) & (column < D), other=0.0)


@triton.jit
@no_type_check
def _multiply(tile, values):
    """Return the products of a tile with one row, (SHARES, BLOCK)."""
    return tl.sum(tl.sum(tile.to(tl.float32) * values[:, :, None, :], axis=1), axis=2)


@triton.jit
@no_type_check
def _linear_kernel(
    x, weight, y, outputs, span,
    ROWS: tl.constexpr, D: tl.constexpr, SHARES: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr,
    BLOCK: tl.constexpr, TILES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * span
    end = tl.minimum(first + span, outputs)
    tile = _read_tile(weight, first, end, D, SHARES, PARTS, LANES, BLOCK)
    following = tile
    if TILES > 1:
        following = _read_tile(weight, first + BLOCK, end, D, SHARES, PARTS, LANES, BLOCK)
    column = _columns(SHARES, PARTS, LANES)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    for index in tl.static_range(TILES):
        output = first + index * BLOCK + tl.arange(0, BLOCK)
        for row in tl.static_range(ROWS):
            values = tl.load(x + row * D + column, mask=column < D, other=0.0).to(tl.float32)
            product = tl.sum(_multiply(tile, values), axis=0)
            tl.store(y + row * outputs + output, product.to(y.dtype.element_ty), mask=output < end)
        tile = following
        if index + 2 < TILES:
            following = _read_tile(weight, first + (index + 2) * BLOCK, end, D, SHARES, PARTS, LANES, BLOCK)


@triton.jit
@no_type_check
def _rows_apart(values, SHARES: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr, EVEN: tl.constexpr):
    """Return each of up to four rows by itself, in the order of a tile's columns; where there are fewer, some again."""
    if EVEN == 1:
        row_0 = tl.reshape(values, (SHARES * PARTS * LANES,))
        row_1 = row_0
        row_2 = row_0
        row_3 = row_0
    elif EVEN == 2:
        row_0, row_1 = tl.split(tl.trans(values))
        row_2 = row_0
        row_3 = row_1
    else:
        even, odd = tl.split(tl.reshape(tl.trans(values), (SHARES * PARTS * LANES, 2, 2)))
        row_0, row_2 = tl.split(even)
        row_1, row_3 = tl.split(odd)
    shape: tl.constexpr = (SHARES, PARTS, LANES)
    return tl.reshape(row_0, shape), tl.reshape(row_1, shape), tl.reshape(row_2, shape), tl.reshape(row_3, shape)


@triton.jit
@no_type_check
def _residual_kernel(
    residual, norm_weight, shift, scale, mixed, gate, squares, weight, y, new_residual,
    shift_stride, scale_stride, gate_stride, parts, inner, eps, outputs, span,
    ROWS: tl.constexpr, EVEN: tl.constexpr, D: tl.constexpr, SHARES: tl.constexpr, PARTS: tl.constexpr,
    LANES: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, GROUPS: tl.constexpr,
    ADD: tl.constexpr, DIVIDE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * span
    end = tl.minimum(first + span, outputs)
    tile = _read_tile(weight, first, end, D, SHARES, PARTS, LANES, BLOCK)
    following = tile
    if TILES > 1:
        following = _read_tile(weight, first + BLOCK, end, D, SHARES, PARTS, LANES, BLOCK)
    row = tl.arange(0, EVEN)[:, None]  # all rows at once; EVEN is ROWS or the next power of two
    column = tl.arange(0, SHARES * PARTS * LANES)[None, :]
    known = (row < ROWS) & (column < D)
    factors = tl.load(norm_weight + column, mask=column < D, other=0.0)
    scales = tl.load(scale + row * scale_stride + column, mask=known, other=0.0).to(tl.float32)
    shifts = tl.load(shift + row * shift_stride + column, mask=known, other=0.0).to(tl.float32)
    if ADD:
        gates = tl.load(gate + row * gate_stride + column, mask=known, other=0.0).to(tl.float32)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    values = tl.load(residual + row * D + column, mask=known, other=0.0)
    if ADD:
        added = tl.load(mixed + row * D + column, mask=known, other=0.0).to(tl.float32)
        if DIVIDE:
            part = tl.arange(0, GROUPS)[None, :]
            counted = (row < ROWS) & (part < parts)
            total = tl.sum(tl.load(squares + row * parts + part, mask=counted, other=0.0), axis=1)
            gates *= tl.rsqrt(total / inner + eps)[:, None]
        values += gates * added
    tl.store(new_residual + row * D + column, values, mask=known & (tl.program_id(0) == 0))
    values *= tl.rsqrt(tl.sum(values * values, axis=1) / D + eps)[:, None] * factors
    values = values * (1 + scales) + shifts

    row_0, row_1, row_2, row_3 = _rows_apart(values, SHARES, PARTS, LANES, EVEN)
    for index in tl.static_range(TILES):
        output = first + index * BLOCK + tl.arange(0, BLOCK)
        product = _multiply(tile, row_0)
        if EVEN > 1:
            product = tl.join(product, _multiply(tile, row_1))
        if EVEN > 2:
            product_2 = _multiply(tile, row_2)
            product_3 = product_2
            if ROWS > 3:
                product_3 = _multiply(tile, row_3)
            product = tl.join(product, tl.join(product_2, product_3))
        product = tl.reshape(product, (SHARES, BLOCK, EVEN))
        product = tl.sum(product, axis=0)  # what warps exchange, for all rows at once
        place = tl.arange(0, EVEN)
        of_row = place if EVEN < 4 else place % 2 * 2 + place // 2
        stored = (output < end)[:, None] & (of_row < ROWS)[None, :]
        tl.store(y + of_row[None, :] * outputs + output[:, None], product.to(y.dtype.element_ty), mask=stored)
        tile = following
        if index + 2 < TILES:
            following = _read_tile(weight, first + (index + 2) * BLOCK, end, D, SHARES, PARTS, LANES, BLOCK)


class Division(NamedTuple):
    """How the outputs of a product are divided among programs.

    Attributes:
        programs: Number of programs.
        span: Outputs of each, but the last ones.
        block: Outputs of a tile, a power of two.
        tiles: Tiles of a program.
        shares: Warps that share an output, a power of two: each takes some of the columns.
        parts: Parts of a share of the columns, a power of two.
        lanes: Columns of a part, a power of two.
    """

    programs: int
    span: int
    block: int
    tiles: int
    shares: int
    parts: int
    lanes: int


def divide(weight: Float[Tensor, "o d"], launch: Launch, *, kept: int = 0) -> Division:
    """Divide the outputs evenly among the device's multiprocessors, in few tiles a program.

    Args:
        weight: Only its shape and its device matter.
        launch: Sizes of a program.
        kept: Rows that a program keeps in registers, a power of two.
    """
    outputs, inputs = weight.shape
    wide = triton.next_power_of_2(inputs)
    lanes = min(wide, _LANES)
    numbers, most_kept = (most * 2 // weight.itemsize for most in (launch.numbers, _MOST_NUMBERS))
    shares = min(max(1, kept * wide // most_kept, launch.warps * wide // numbers), launch.warps, wide // lanes)
    most = max(launch.warps, numbers // wide) // shares
    share = triton.cdiv(outputs, processors(weight.device))
    span = triton.cdiv(share, triton.cdiv(share, most * _MOST_TILES * shares))
    block = min(most, triton.next_power_of_2(span))
    tiles, parts = triton.cdiv(span, block), wide // lanes // shares
    return Division(triton.cdiv(outputs, span), span, block, tiles, shares, parts, lanes)


def launch_of(weight: Float[Tensor, "o d"]) -> Launch:
    """Return the layout that ``linear`` takes for a weight."""
    return MANY_OUTPUTS if len(weight) >= _MANY * processors(weight.device) else DEFAULT


def linear(
    x: Float[Tensor, "b d"], weight: Float[Tensor, "o d"], *, launch: Launch | None = None, overlap: bool = False
) -> Float[Tensor, "b o"]:
    """Compute ``aimamba.ops.linear.linear.linear``.

    Without ``launch`` the number of outputs decides. With ``overlap`` the weight must not have been written by the
    kernel launched just before.
    """
    rows, (outputs, inputs) = x.shape[0], weight.shape
    if rows > MOST_ROWS:
        return F.linear(x, weight)
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    launch = launch or launch_of(weight)
    division = divide(weight, launch)
    options = overlap_options(x, overlap)
    _linear_kernel[(division.programs,)](
        x.contiguous(), weight, y, outputs, division.span,
        rows, inputs, division.shares, division.parts, division.lanes, division.block, division.tiles, bool(options),
        num_warps=launch.warps, **options,
    )  # fmt: skip
    return y


def split_linear(
    x: Float[Tensor, "b d"], weight: Float[Tensor, "o d"], *, overlap: bool = False
) -> Float[Tensor, "s b o"]:
    """Compute ``linear`` in up to ``_MOST_PARTS`` parts, each of some inputs, whose sum is the result.

    A product with few outputs has too few tiles for all multiprocessors, and one of many inputs takes long for each.
    ``overlap``: see ``linear``.
    """
    rows, (outputs, inputs) = x.shape[0], weight.shape
    if rows <= MOST_ROWS:
        return linear(x, weight, overlap=overlap)[None]
    most = max(1, processors(x.device) // (triton.cdiv(rows, _TILE) * triton.cdiv(outputs, _TILE)))
    even = [part for part in range(2, min(most, _MOST_PARTS) + 1) if inputs % (part * _FEWEST_INPUTS) == 0]
    if not even:
        return F.linear(x, weight)[None]
    parts = even[-1]
    of_x, of_weight = (tensor.view(len(tensor), parts, -1).transpose(0, 1) for tensor in (x.contiguous(), weight))
    return torch.bmm(of_x, of_weight.mT)


def residual_linear_step(
    residual: Float[Tensor, "b d"],
    norm_weight: Float[Tensor, " d"],
    shift: Float[Tensor, "b d"],
    scale: Float[Tensor, "b d"],
    weight: Float[Tensor, "o d"],
    *,
    mixed: Float[Tensor, "*s b d"] | None = None,
    gate: Float[Tensor, "b d"] | None = None,
    squares: Float[Tensor, "b g"] | None = None,
    inner: int = 1,
    eps: float = 1e-5,
    launch: Launch = DEFAULT,
    overlap: bool = False,
) -> tuple[Float[Tensor, "b o"], Float[Tensor, "b d"]]:
    """Compute ``aimamba.ops.linear.residual.residual_linear_step``; the residual must be float32.

    With few rows ``residual`` is not changed, because programs read it while one of them writes the new one.
    With ``overlap`` the weights, shift, scale and gate must not have been written by the kernel launched just before.
    """
    rows, (outputs, inputs) = residual.shape[0], weight.shape
    even = triton.next_power_of_2(rows)
    if rows > MOST_ROWS:
        hidden = residual_norm_step(
            residual, norm_weight, shift, scale,
            mixed=mixed, gate=gate, squares=squares, inner=inner, eps=eps, overlap=overlap,
        )  # fmt: skip
        return F.linear(hidden, weight), residual
    y = torch.empty(rows, outputs, dtype=shift.dtype, device=residual.device)
    new_residual = residual if mixed is None else torch.empty_like(residual)
    division = divide(weight, launch, kept=even)
    options = overlap_options(residual, overlap)
    parts = 1 if squares is None else squares.shape[1]
    gate = shift if gate is None else gate  # any pointer will do for what is not read
    _residual_kernel[(division.programs,)](
        residual, norm_weight, shift, scale,
        shift if mixed is None else mixed, gate, residual if squares is None else squares, weight, y, new_residual,
        shift.stride(0), scale.stride(0), gate.stride(0), parts, inner, eps, outputs, division.span,
        rows, even, inputs, division.shares, division.parts, division.lanes, division.block, division.tiles,
        triton.next_power_of_2(parts), mixed is not None, squares is not None, bool(options),
        num_warps=launch.warps, **options,
    )  # fmt: skip
    return y, new_residual
