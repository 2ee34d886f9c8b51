"""The backward pass of the SSD without states: four Triton kernels, see ``aimamba.ops.ssd.triton.quadratic``.

With ``G_ts = dy_t . x_s``,

    dx_s = dt_s sum_t S_ts exp(total_t - total_s) dy_t
    dS_ts = sum over heads of G_ts exp(total_t - total_s) dt_s,   dC = dS B,   dB = dS^T C

and the gradient of a log-decay is the sum over all pairs of tokens that span it.
There are no atomic additions, so results are the same in every run.

Shape letters: B rows, L tokens, H heads, P head width, E = H P, N state size, Q tokens of a tile, T tiles, C = E + 2 N
convolved channels (x, B, C), Z projected features.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.ssd.triton.forward import (
    LOWEST_LOG_DECAY,
    Launch,
    decay_between,
    load_tile,
    product,
    store_tile,
    tile,
)
from aimamba.ops.ssd.triton.quadratic import LAUNCHES, Launches, Steps, load_pair


@triton.jit
@no_type_check
def _inputs_kernel(
    active, tiles, dt, total, skip, dy, dactive, ddt, dskip, L, T,
    C: tl.constexpr, H: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    j, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    token, channel = tl.arange(0, Q), tl.arange(0, WIDE_P)
    dy += row * L * H * P + head * P
    tiles += row * T * T * Q * Q
    own = (row * H + head) * T
    dt += own * Q
    total += own * Q
    sums = tl.zeros((Q, WIDE_P), dtype=tl.float32)
    between = 0.0
    for i in range(j + 1, T):
        place = i * Q + token
        weight = tl.exp(tl.load(total + place) + between)
        gradient = load_tile(dy, place, H * P, channel, L, P)
        similar = load_pair(tiles, i, j, T, Q)
        sums += product(tl.trans(similar.to(gradient.dtype)), (gradient * weight[:, None]).to(gradient.dtype))
        between += tl.load(total + i * Q + Q - 1)
    place = j * Q + token
    running = tl.load(total + place)
    gradient = load_tile(dy, place, H * P, channel, L, P)
    weights = load_pair(tiles, j, j, T, Q).to(tl.float32) * decay_between(running, Q)
    sums *= tl.exp(tl.load(total + j * Q + Q - 1) - running)[:, None]
    sums += product(tl.trans(weights.to(gradient.dtype)), gradient)
    inputs = load_tile(active + row * L * C + head * P, place, C, channel, L, P).to(tl.float32)
    wide = gradient.to(tl.float32)
    tl.store(ddt + own * Q + place, tl.sum(sums * inputs, axis=1))  # of the step itself, not of its decay
    tl.store(dskip + own + j, tl.sum(tl.sum(wide * inputs, axis=1), axis=0))
    sums = sums * tl.load(dt + place)[:, None] + tl.load(skip + head).to(tl.float32) * wide
    store_tile(dactive + row * L * C + head * P, sums, place, C, channel, L, P)


@triton.jit
@no_type_check
def _add_heads(
    sums, similar, active, dt, total, dy, later, earlier, row, i, j, first, L, T,
    C: tl.constexpr, H: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr, Q: tl.constexpr,
    WIDE_T: tl.constexpr, GROUP: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Add a pair of tiles' gradients of some heads to ``sums``, and store what follows for their log-decays."""
    token, channel, middle = tl.arange(0, Q), tl.arange(0, WIDE_P), tl.arange(0, WIDE_T)
    for head in range(first, first + GROUP):
        own = (row * H + head) * T * Q
        steps = tl.load(dt + own + j * Q + token)
        running = tl.load(total + own + i * Q + token)
        start = tl.load(total + own + j * Q + token)
        gradient = load_tile(dy + row * L * H * P + head * P, i * Q + token, H * P, channel, L, P)
        inputs = load_tile(active + row * L * C + head * P, j * Q + token, C, channel, L, P)
        shares = product(gradient, tl.trans(inputs))
        if APART:  # the decay is one up to the end of the tile before i, times one from there; none is above 1
            ends = tl.load(total + own + middle * Q + Q - 1, mask=(middle >= j) & (middle < i), other=0.0)
            shares *= tl.exp(running)[:, None] * (tl.exp(tl.sum(ends, axis=0) - start) * steps)[None, :]
            sums += shares
        else:
            between = tl.where(token[:, None] >= token[None, :], running[:, None] - start[None, :], -float("inf"))
            shares *= tl.exp(between) * steps[None, :]
            sums += shares
            shares = tl.where(token[:, None] > token[None, :], shares, 0.0)
        shares *= similar
        tl.store(later + own * T + (i * T + j) * Q + token, tl.sum(shares, axis=1))
        tl.store(earlier + own * T + (j * T + i) * Q + token, tl.sum(shares, axis=0))
    return sums


@triton.jit
@no_type_check
def _pairs_kernel(
    active, tiles, dt, total, dy, dtiles, later, earlier, L, T,
    C: tl.constexpr, H: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr, Q: tl.constexpr,
    WIDE_T: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    i, j = tl.program_id(0) // T, tl.program_id(0) % T
    group, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    token = tl.arange(0, Q)
    if j <= i:
        similar = load_pair(tiles + row * T * T * Q * Q, i, j, T, Q).to(tl.float32)
        sums = tl.zeros((Q, Q), dtype=tl.float32)
        first = group * GROUP
        if j < i:
            sums = _add_heads(
                sums, similar, active, dt, total, dy, later, earlier, row, i, j, first, L, T,
                C, H, P, WIDE_P, Q, WIDE_T, GROUP, True,
            )  # fmt: skip
        else:
            sums = _add_heads(
                sums, similar, active, dt, total, dy, later, earlier, row, i, j, first, L, T,
                C, H, P, WIDE_P, Q, WIDE_T, GROUP, False,
            )  # fmt: skip
        place = (group * tl.num_programs(2).to(tl.int64) + row) * T * T * Q * Q
        tl.store(dtiles + place + (i * T + j) * Q * Q + token[:, None] * Q + token[None, :], sums)


@triton.jit
@no_type_check
def _projections_kernel(
    active, dtiles, dactive, L, T, groups,
    C: tl.constexpr, E: tl.constexpr, N: tl.constexpr, WIDE_N: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    m, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    token, state = tl.arange(0, Q), tl.arange(0, WIDE_N)
    row_start = active + row * L * C + E
    size = tl.num_programs(2).to(tl.int64) * T * T * Q * Q
    dtiles += row * T * T * Q * Q
    sums = tl.zeros((Q, WIDE_N), dtype=tl.float32)
    if tl.program_id(1) == 0:
        for i in range(m, T):
            pairs = load_pair(dtiles, i, m, T, Q)
            for group in range(1, groups):
                pairs += load_pair(dtiles + group * size, i, m, T, Q)
            c = load_tile(row_start + N, i * Q + token, C, state, L, N)
            sums += product(tl.trans(pairs.to(c.dtype)), c)
        store_tile(dactive + row * L * C + E, sums, m * Q + token, C, state, L, N)
    else:
        for j in range(m + 1):
            pairs = load_pair(dtiles, m, j, T, Q)
            for group in range(1, groups):
                pairs += load_pair(dtiles + group * size, m, j, T, Q)
            b = load_tile(row_start, j * Q + token, C, state, L, N)
            sums += product(pairs.to(b.dtype), b)
        store_tile(dactive + row * L * C + E + N, sums, m * Q + token, C, state, L, N)


@triton.jit
@no_type_check
def _steps_backward_kernel(
    projected, dt_bias, A_log, dt, ddt, later, earlier, dskip, dprojected, sums, L, T,
    Z: tl.constexpr, START: tl.constexpr, H: tl.constexpr, Q: tl.constexpr, WIDE_T: tl.constexpr,
):  # fmt: skip
    head, m, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    token, other = tl.arange(0, Q), tl.arange(0, WIDE_T)
    own = (row * H + head) * T * Q
    place = m * Q + token
    cell = other[:, None] * Q + token[None, :]  # of all tiles that one tile makes pairs with
    later += own * T
    earlier += own * T + m * T * Q
    before = (other <= m)[:, None]
    rows = tl.sum(tl.load(later + m * T * Q + cell, mask=before, other=0.0), axis=0)
    columns = tl.sum(tl.load(earlier + cell, mask=((other >= m) & (other < T))[:, None], other=0.0), axis=0)
    # A log-decay is in the exponents of all pairs that span its token.
    across = tl.zeros((WIDE_T, Q), dtype=tl.float32)  # from this tile or one before to one after
    for i in range(m + 1, T):
        across += tl.load(later + i * T * Q + cell, mask=before, other=0.0)
    spanning = tl.cumsum(rows - columns, axis=0, reverse=True) + tl.sum(tl.sum(across, axis=1), axis=0)
    rate = -tl.exp(tl.load(A_log + head).to(tl.float32))
    step = tl.load(dt + own + place)
    spanning = tl.where(step * rate >= LOWEST_LOG_DECAY, spanning, 0.0)
    cell = (row * L + place) * Z + START + head
    raw = tl.load(projected + cell, mask=place < L, other=0.0).to(tl.float32)
    raw += tl.load(dt_bias + head).to(tl.float32)
    draw = (tl.load(ddt + own + place) + spanning * rate) / (1 + tl.exp(-raw))
    draw = tl.where(place < L, draw, 0.0)
    tl.store(dprojected + cell, draw.to(dprojected.dtype.element_ty), mask=place < L)
    sums += (row * T + m) * 3 * H + head
    tl.store(sums, tl.sum(draw, axis=0))
    tl.store(sums + H, tl.sum(spanning * step, axis=0) * rate)  # of A_log
    tl.store(sums + 2 * H, tl.load(dskip + (row * H + head) * T + m))


class Gradients(NamedTuple):
    """Gradients of the weights, in float32."""

    dt_bias: Float[Tensor, " h"]
    A_log: Float[Tensor, " h"]
    skip: Float[Tensor, " h"]


def ssd_quadratic_backward(
    dy: Float[Tensor, "b l e"],
    projected: Float[Tensor, "b l z"],
    active: Float[Tensor, "b l c"],
    tiles: Float[Tensor, "b t t q q"],
    steps: Steps,
    dt_bias: Float[Tensor, " h"],
    A_log: Float[Tensor, " h"],
    skip: Float[Tensor, " h"],
    dprojected: Float[Tensor, "b l z"],
    *,
    launches: Launches | None = None,
) -> tuple[Float[Tensor, "b l c"], Gradients]:
    """Compute the gradients of everything that ``ssd_quadratic`` and ``steps`` take.

    The gradient of the step sizes is written into the last H features of ``dprojected``.

    Returns:
        The gradient of ``active`` in its dtype, and those of the weights.
    """
    launches = launches or LAUNCHES[active.dtype]
    batch, length, channels = active.shape
    inner, heads, count, tokens = dy.shape[2], len(skip), tiles.shape[1], tiles.shape[-1]
    states, wide_count = (channels - inner) // 2, triton.next_power_of_2(count)
    dactive, ddt = torch.empty_like(active), torch.empty_like(steps.dt)
    dskip = gradient_of_inputs(dy, active, tiles, steps, skip, dactive, ddt, launches.inputs)
    dtiles, later, earlier = gradient_of_pairs(dy, active, tiles, steps, launches)
    _projections_kernel[(count, 2, batch)](
        active, dtiles, dactive, length, count, len(dtiles), channels, inner, states, tile(states), tokens, num_warps=4
    )
    sums = ddt.new_empty(batch, count, 3, heads)
    _steps_backward_kernel[(heads, count, batch)](
        projected, dt_bias, A_log, steps.dt, ddt, later, earlier, dskip, dprojected, sums, length, count,
        projected.shape[2], projected.shape[2] - heads, heads, tokens, wide_count, num_warps=1,
    )  # fmt: skip
    return dactive, Gradients(*sums.sum(dim=(0, 1)).unbind())


def gradient_of_inputs(
    dy: Tensor, active: Tensor, tiles: Tensor, steps: Steps, skip: Tensor, dactive: Tensor, ddt: Tensor, launch: Launch
) -> Float[Tensor, "b h t"]:
    """Write the gradient of x into ``dactive`` and that of each step, but for its decay, into ``ddt``.

    Returns:
        The gradient of the skip from each tile.
    """
    batch, heads, _ = steps.dt.shape
    count, tokens, width = tiles.shape[1], tiles.shape[-1], dy.shape[2] // heads
    dskip = ddt.new_empty(batch, heads, count)
    _inputs_kernel[(count, heads, batch)](
        active, tiles, *steps, skip, dy, dactive, ddt, dskip, active.shape[1], count,
        active.shape[2], heads, width, tile(width), tokens, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return dskip


def gradient_of_pairs(
    dy: Tensor, active: Tensor, tiles: Tensor, steps: Steps, launches: Launches
) -> tuple[Float[Tensor, "g b t t q q"], Float[Tensor, "b h t t q"], Float[Tensor, "b h t t q"]]:
    """Compute the gradients of the similarities, summed over each group of heads, and what follows from all pairs.

    Returns:
        The gradients, in tiles as ``similarities`` makes them; and for every token and head its sums over the tokens of
        each earlier tile, and of each later one, of ``shares``, the gradient of a log-decay that one pair adds: by
        tile of the token, other tile, and token in its tile.
    """
    batch, heads, _ = steps.dt.shape
    count, tokens, width = tiles.shape[1], tiles.shape[-1], dy.shape[2] // heads
    most = max(1, heads // launches.pair_groups)
    group = max(each for each in range(1, most + 1) if heads % each == 0)
    dtiles = steps.dt.new_empty(heads // group, *tiles.shape)
    later, earlier = steps.dt.new_empty(2, batch, heads, count, count, tokens).unbind()
    _pairs_kernel[(count * count, heads // group, batch)](
        active, tiles, *steps, dy, dtiles, later, earlier, active.shape[1], count,
        active.shape[2], heads, width, tile(width), tokens, triton.next_power_of_2(count), group,
        num_warps=launches.pairs.warps, num_stages=launches.pairs.stages,
    )  # fmt: skip
    return dtiles, later, earlier
