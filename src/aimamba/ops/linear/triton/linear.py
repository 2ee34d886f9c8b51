"""Matrix products with few rows as Triton kernels, which read every weight once and are bound by that.

A program computes a span of outputs from all inputs, so a weight is loaded once and no sum is split. There are about
as many programs as multiprocessors. A program reads its weights a tile at a time, two tiles ahead, and the first two
before anything else: in ``residual_linear_step``, where every program computes the norm of the rows again, they arrive
during the norm. With ``overlap`` they arrive while the kernel before still runs (programmatic dependent launch); until
a kernel has waited for that one, it reads only weights, shift, scale and gate. More than ``MOST_ROWS`` rows go to
torch.

Shape letters: B rows, D inputs, O outputs, G partial sums, S parts of a product.
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
        numbers: Numbers of the weight in one tile, a power of two; at least one output for each warp.
        warps: Warps of a program.
    """

    numbers: int
    warps: int


MOST_ROWS = 4
MOST_NUMBERS = 4096  # normalised numbers, of all rows, that the threads of a program can keep in registers
DEFAULT = Launch(numbers=16384, warps=8)  # as measured on an H200, see docs/log.md
_LANES = 256  # columns that a warp reads at once, 16 bytes a thread
_MOST_TILES = 8  # of a program
_TILE = 128  # rows and outputs that a multiprocessor takes of a product with many rows
_MOST_PARTS, _FEWEST_INPUTS = 4, 128  # of a product that is split, and of a part


@triton.jit
@no_type_check
def _read_tile(weight, first, end, D: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr):
    """Return weights of some outputs, (PARTS, BLOCK, LANES): column PART LANES + LANE; zeros from ``end`` on."""
    output = first + tl.arange(0, BLOCK)
    column = tl.arange(0, PARTS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    inside = (output < end)[None, :, None] & (column < D)[:, None, :]
    # The hint sets the order of the axes alone: warps take different outputs, so that sums need no exchange among them.
    pointer = tl.max_contiguous(weight + output[None, :, None] * D + column[:, None, :], (1, 2, LANES))
    return tl.load(pointer, mask=inside, other=0.0)


@triton.jit
@no_type_check
def _multiply(tile, values):
    """Return the products of a tile with one row, (BLOCK,)."""
    return tl.sum(tl.sum(tile.to(tl.float32) * values[:, None, :], axis=0), axis=1)


@triton.jit
@no_type_check
def _write(y, row, outputs, output, end, tile, values):
    """Multiply a tile with one row and store the products."""
    tl.store(y + row * outputs + output, _multiply(tile, values).to(y.dtype.element_ty), mask=output < end)


@triton.jit
@no_type_check
def _linear_kernel(
    x, weight, y, outputs, span,
    ROWS: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
    TILES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * span
    end = tl.minimum(first + span, outputs)
    tile = _read_tile(weight, first, end, D, PARTS, LANES, BLOCK)
    following = tile
    if TILES > 1:
        following = _read_tile(weight, first + BLOCK, end, D, PARTS, LANES, BLOCK)
    column = tl.arange(0, PARTS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    for index in tl.static_range(TILES):
        output = first + index * BLOCK + tl.arange(0, BLOCK)
        for row in tl.static_range(ROWS):
            values = tl.load(x + row * D + column, mask=column < D, other=0.0).to(tl.float32)
            _write(y, row, outputs, output, end, tile, values)
        tile = following
        if index + 2 < TILES:
            following = _read_tile(weight, first + (index + 2) * BLOCK, end, D, PARTS, LANES, BLOCK)


@triton.jit
@no_type_check
def _rows_apart(values, PARTS: tl.constexpr, LANES: tl.constexpr, EVEN: tl.constexpr):
    """Return each of up to four rows by itself, in the order of a tile's columns; where there are fewer, some again."""
    if EVEN == 1:
        row_0 = tl.reshape(values, (PARTS * LANES,))
        row_1 = row_0
        row_2 = row_0
        row_3 = row_0
    elif EVEN == 2:
        row_0, row_1 = tl.split(tl.trans(values))
        row_2 = row_0
        row_3 = row_1
    else:
        even, odd = tl.split(tl.reshape(tl.trans(values), (PARTS * LANES, 2, 2)))
        row_0, row_2 = tl.split(even)
        row_1, row_3 = tl.split(odd)
    shape: tl.constexpr = (PARTS, LANES)
    return tl.reshape(row_0, shape), tl.reshape(row_1, shape), tl.reshape(row_2, shape), tl.reshape(row_3, shape)


@triton.jit
@no_type_check
def _residual_kernel(
    residual, norm_weight, shift, scale, mixed, gate, squares, weight, y, new_residual,
    shift_stride, scale_stride, gate_stride, parts, inner, eps, outputs, span,
    ROWS: tl.constexpr, EVEN: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr,
    BLOCK: tl.constexpr, TILES: tl.constexpr, GROUPS: tl.constexpr,
    ADD: tl.constexpr, DIVIDE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * span
    end = tl.minimum(first + span, outputs)
    tile = _read_tile(weight, first, end, D, PARTS, LANES, BLOCK)
    following = tile
    if TILES > 1:
        following = _read_tile(weight, first + BLOCK, end, D, PARTS, LANES, BLOCK)
    row = tl.arange(0, EVEN)[:, None]  # all rows at once; EVEN is ROWS or the next power of two
    column = tl.arange(0, PARTS * LANES)[None, :]
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

    row_0, row_1, row_2, row_3 = _rows_apart(values, PARTS, LANES, EVEN)
    for index in tl.static_range(TILES):
        output = first + index * BLOCK + tl.arange(0, BLOCK)
        _write(y, 0, outputs, output, end, tile, row_0)
        if ROWS > 1:
            _write(y, 1, outputs, output, end, tile, row_1)
        if ROWS > 2:
            _write(y, 2, outputs, output, end, tile, row_2)
        if ROWS > 3:
            _write(y, 3, outputs, output, end, tile, row_3)
        tile = following
        if index + 2 < TILES:
            following = _read_tile(weight, first + (index + 2) * BLOCK, end, D, PARTS, LANES, BLOCK)


class Division(NamedTuple):
    """How the outputs of a product are divided among programs.

    Attributes:
        programs: Number of programs.
        span: Outputs of each, but the last ones.
        block: Outputs of a tile, a power of two.
        tiles: Tiles of a program.
        parts: Parts of a tile's columns, a power of two.
        lanes: Columns of a part, a power of two.
    """

    programs: int
    span: int
    block: int
    tiles: int
    parts: int
    lanes: int


def divide(weight: Float[Tensor, "o d"], launch: Launch) -> Division:
    """Divide the outputs evenly among the device's multiprocessors, with at most ``_MOST_TILES`` tiles a program."""
    outputs, inputs = weight.shape
    wide = triton.next_power_of_2(inputs)
    lanes = min(wide, _LANES)
    most = max(launch.warps, launch.numbers // wide)
    share = triton.cdiv(outputs, processors(weight.device))
    span = triton.cdiv(share, triton.cdiv(share, most * _MOST_TILES))
    block = min(most, triton.next_power_of_2(span))
    return Division(triton.cdiv(outputs, span), span, block, triton.cdiv(span, block), wide // lanes, lanes)


def linear(
    x: Float[Tensor, "b d"], weight: Float[Tensor, "o d"], *, launch: Launch = DEFAULT, overlap: bool = False
) -> Float[Tensor, "b o"]:
    """Compute ``aimamba.ops.linear.linear.linear``.

    With ``overlap`` the weight must not have been written by the kernel launched just before.
    """
    rows, (outputs, inputs) = x.shape[0], weight.shape
    if rows > MOST_ROWS:
        return F.linear(x, weight)
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    division = divide(weight, launch)
    options = overlap_options(x, overlap)
    _linear_kernel[(division.programs,)](
        x.contiguous(), weight, y, outputs, division.span,
        rows, inputs, division.parts, division.lanes, division.block, division.tiles, bool(options),
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
    if rows > MOST_ROWS or even * triton.next_power_of_2(inputs) > MOST_NUMBERS:
        hidden = residual_norm_step(
            residual, norm_weight, shift, scale,
            mixed=mixed, gate=gate, squares=squares, inner=inner, eps=eps, overlap=overlap,
        )  # fmt: skip
        return F.linear(hidden, weight), residual
    y = torch.empty(rows, outputs, dtype=shift.dtype, device=residual.device)
    new_residual = residual if mixed is None else torch.empty_like(residual)
    division = divide(weight, launch)
    options = overlap_options(residual, overlap)
    parts = 1 if squares is None else squares.shape[1]
    gate = shift if gate is None else gate  # any pointer will do for what is not read
    _residual_kernel[(division.programs,)](
        residual, norm_weight, shift, scale,
        shift if mixed is None else mixed, gate, residual if squares is None else squares, weight, y, new_residual,
        shift.stride(0), scale.stride(0), gate.stride(0), parts, inner, eps, outputs, division.span,
        rows, even, inputs, division.parts, division.lanes, division.block, division.tiles,
        triton.next_power_of_2(parts), mixed is not None, squares is not None, bool(options),
        num_warps=launch.warps, **options,
    )  # fmt: skip
    return y, new_residual
