"""The backward pass of the SSD without states: five Triton kernels, see ``aimamba.ops.ssd.triton.quadratic``.

With ``G_ts = dy_t . x_s``,

    dx_s = dt_s sum_t S_ts exp(total_t - total_s) dy_t
    dS_ts = sum over heads of G_ts exp(total_t - total_s) dt_s,   dC = dS B,   dB = dS^T C

and the gradient of a log-decay is the sum of ``S_ts`` times what a head adds to ``dS_ts``, over all pairs of tokens
that span it. For pairs of two tiles the sum over t is ``x_s . dx_s`` with the dx that comes of them. For pairs of one
tile that would be a difference of large numbers, so the sums are formed pair by pair.
There are no atomic additions, so results are the same in every run.

Shape letters: B rows, L tokens, H heads, P head width, E = H P, N state size, Q tokens of a tile, T tiles, W = T Q,
C = E + 2 N convolved channels (x, B, C), Z projected features.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.ssd.triton.forward import LOWEST_LOG_DECAY, Launch, load_tile, product, store_tile, tile
from aimamba.ops.ssd.triton.quadratic import LAUNCHES, Launches, Steps, decay_within, load_pair
from aimamba.ops.triton.functions import sigmoid


@triton.jit
@no_type_check
def _multiply(one, other):
    return one * other


@triton.jit
@no_type_check
def _inputs_kernel(
    active, tiles, dt, total, since, skip, dy, dactive, apart, same, L, T,
    C: tl.constexpr, H: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    j, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    token, channel = tl.arange(0, Q), tl.arange(0, WIDE_P)
    dy += row * L * H * P + head * P
    tiles += row * T * T * Q * Q
    own = (row * H + head) * T
    inputs = load_tile(active + row * L * C + head * P, j * Q + token, C, channel, L, P)
    sums = tl.zeros((Q, WIDE_P), dtype=tl.float32)
    between = 1.0  # decay of the tiles between
    for i in range(j + 1, T):
        place = i * Q + token
        weight = tl.load(since + own * Q + place) * between
        gradient = load_tile(dy, place, H * P, channel, L, P)
        similar = load_pair(tiles, i, j, T, Q)
        sums += product(tl.trans(similar.to(gradient.dtype)), (gradient * weight[:, None]).to(gradient.dtype))
        between *= tl.load(since + own * Q + i * Q + Q - 1)
    place = j * Q + token
    running = tl.load(total + own * Q + place)
    sums *= tl.exp(tl.load(total + own * Q + j * Q + Q - 1) - running)[:, None]
    tl.store(apart + own * Q + place, tl.sum(sums * inputs, axis=1))
    # Tiles are loaded again, and not kept: that would take registers that a fourth program needs.
    gradient = load_tile(dy, place, H * P, channel, L, P)
    inputs = load_tile(active + row * L * C + head * P, place, C, channel, L, P)
    tl.store(same + own * Q + place, tl.sum(gradient.to(tl.float32) * inputs, axis=1))
    weights = load_pair(tiles, j, j, T, Q).to(tl.float32) * decay_within(running, Q)
    sums += product(tl.trans(weights.to(gradient.dtype)), gradient)
    gradient = load_tile(dy, place, H * P, channel, L, P)
    sums = sums * tl.load(dt + own * Q + place)[:, None] + tl.load(skip + head).to(tl.float32) * gradient
    store_tile(dactive + row * L * C + head * P, sums, place, C, channel, L, P)


@triton.jit
@no_type_check
def _apart_kernel(
    active, tiles, since, left, dy, dtiles, later, L, T,
    C: tl.constexpr, H: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr, Q: tl.constexpr,
    WIDE_T: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Pairs of tokens in two tiles, j before i: the decay is that of t since its tile began times what s has left."""
    i, j = tl.program_id(0) // (T - 1) + 1, tl.program_id(0) % (T - 1)
    group, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    if j < i:
        token, channel, middle = tl.arange(0, Q), tl.arange(0, WIDE_P), tl.arange(0, WIDE_T)
        similar = load_pair(tiles + row * T * T * Q * Q, i, j, T, Q)
        sums = tl.zeros((Q, Q), dtype=tl.float32)
        for head in range(group * GROUP, (group + 1) * GROUP):
            own = (row * H + head) * T * Q
            between = tl.load(since + own + middle * Q + Q - 1, mask=(middle > j) & (middle < i), other=1.0)
            weight = tl.load(left + own + j * Q + token) * tl.reduce(between, 0, _multiply)
            decay = tl.load(since + own + i * Q + token)
            gradient = load_tile(dy + row * L * H * P + head * P, i * Q + token, H * P, channel, L, P)
            inputs = load_tile(active + row * L * C + head * P, j * Q + token, C, channel, L, P)
            shares = product(gradient, tl.trans(inputs)) * weight[None, :]
            sums += shares * decay[:, None]
            tl.store(later + own * T + (i * T + j) * Q + token, tl.sum(shares * similar, axis=1) * decay)
        place = (group * tl.num_programs(2).to(tl.int64) + row) * T * T + i * T + j
        tl.store(dtiles + place * Q * Q + token[:, None] * Q + token[None, :], sums)


@triton.jit
@no_type_check
def _within_kernel(
    active, tiles, dt, total, dy, dtiles, later, within, L, T,
    C: tl.constexpr, H: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr, Q: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Pairs of tokens in one tile."""
    i, group, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    token, channel = tl.arange(0, Q), tl.arange(0, WIDE_P)
    place = i * Q + token
    similar = load_pair(tiles + row * T * T * Q * Q, i, i, T, Q)
    similar = tl.where(token[:, None] > token[None, :], similar, 0.0)  # a token does not decay before it is read
    sums = tl.zeros((Q, Q), dtype=tl.float32)
    for head in range(group * GROUP, (group + 1) * GROUP):
        own = (row * H + head) * T * Q
        gradient = load_tile(dy + row * L * H * P + head * P, place, H * P, channel, L, P)
        inputs = load_tile(active + row * L * C + head * P, place, C, channel, L, P)
        step = tl.load(dt + own + place)
        shares = product(gradient, tl.trans(inputs)) * decay_within(tl.load(total + own + place), Q)
        sums += shares * step[None, :]
        shares *= similar
        tl.store(later + own * T + (i * T + i) * Q + token, tl.sum(shares * step[None, :], axis=1))
        tl.store(within + own + place, tl.sum(shares, axis=0))
    sums = tl.where(token[:, None] >= token[None, :], sums, 0.0)
    cell = (group * tl.num_programs(2).to(tl.int64) + row) * T * T + i * T + i
    tl.store(dtiles + cell * Q * Q + token[:, None] * Q + token[None, :], sums)


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
    projected, tiles, dt_bias, A_log, dt, apart, same, later, within, dprojected, sums, L, T,
    Z: tl.constexpr, START: tl.constexpr, H: tl.constexpr, Q: tl.constexpr, WIDE_T: tl.constexpr,
):  # fmt: skip
    head, m, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    token, other = tl.arange(0, Q), tl.arange(0, WIDE_T)
    own = (row * H + head) * T * Q
    place = m * Q + token
    cell = other[:, None] * Q + token[None, :]  # of all tiles that one tile makes pairs with
    later += own * T
    step, same = tl.load(dt + own + place), tl.load(same + own + place)
    within, apart = tl.load(within + own + place), tl.load(apart + own + place)
    # A log-decay is in the exponents of all pairs that span its token. They end in this tile,
    rows = tl.sum(tl.load(later + m * T * Q + cell, mask=(other <= m)[:, None], other=0.0), axis=0)
    spanning = tl.cumsum(rows - within * step, axis=0, reverse=True)
    spanning += tl.cumsum(apart * step, axis=0) - apart * step  # or begin here and end in a later one,
    across = tl.zeros((WIDE_T, Q), dtype=tl.float32)  # or begin in an earlier one and end in a later one.
    for i in range(m + 1, T):
        across += tl.load(later + i * T * Q + cell, mask=(other < m)[:, None], other=0.0)
    spanning += tl.sum(tl.sum(across, axis=1), axis=0)
    rate = -tl.exp(tl.load(A_log + head).to(tl.float32))
    spanning = tl.where(step * rate >= LOWEST_LOG_DECAY, spanning, 0.0)
    similar = tl.load(tiles + ((row * T + m) * T + m) * Q * Q + token * (Q + 1)).to(tl.float32)
    dstep = apart + within + similar * same + spanning * rate
    cell = (row * L + place) * Z + START + head
    raw = tl.load(projected + cell, mask=place < L, other=0.0).to(tl.float32)
    raw += tl.load(dt_bias + head).to(tl.float32)
    draw = tl.where(place < L, dstep * sigmoid(raw), 0.0)
    tl.store(dprojected + cell, draw.to(dprojected.dtype.element_ty), mask=place < L)
    sums += (row * T + m) * 3 * H + head
    tl.store(sums, tl.sum(draw, axis=0))
    tl.store(sums + H, tl.sum(spanning * step, axis=0) * rate)  # of A_log
    tl.store(sums + 2 * H, tl.sum(same, axis=0))  # of the skip


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
    dactive = torch.empty_like(active)
    apart, same = gradient_of_inputs(dy, active, tiles, steps, skip, dactive, launches.inputs)
    dtiles, later, within = gradient_of_pairs(dy, active, tiles, steps, launches)
    _projections_kernel[(count, 2, batch)](
        active, dtiles, dactive, length, count, len(dtiles), channels, inner, states, tile(states), tokens, num_warps=4
    )
    sums = apart.new_empty(batch, count, 3, heads)
    _steps_backward_kernel[(heads, count, batch)](
        projected, tiles, dt_bias, A_log, steps.dt, apart, same, later, within, dprojected, sums, length, count,
        projected.shape[2], projected.shape[2] - heads, heads, tokens, wide_count, num_warps=1,
    )  # fmt: skip
    return dactive, Gradients(*sums.sum(dim=(0, 1)).unbind())


def gradient_of_inputs(
    dy: Tensor, active: Tensor, tiles: Tensor, steps: Steps, skip: Tensor, dactive: Tensor, launch: Launch
) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
    """Write the gradient of x into ``dactive``.

    Returns:
        For every token and head, the gradient of its step, but for its decay, from the tokens of later tiles; and
        ``dy . x`` of the token itself.
    """
    batch, heads, _ = steps.dt.shape
    count, tokens, width = tiles.shape[1], tiles.shape[-1], dy.shape[2] // heads
    apart, same = torch.empty_like(steps.dt), torch.empty_like(steps.dt)
    _inputs_kernel[(count, heads, batch)](
        active, tiles, steps.dt, steps.total, steps.since, skip, dy, dactive, apart, same, active.shape[1], count,
        active.shape[2], heads, width, tile(width), tokens, **launch.options(),
    )  # fmt: skip
    return apart, same


def gradient_of_pairs(
    dy: Tensor, active: Tensor, tiles: Tensor, steps: Steps, launches: Launches
) -> tuple[Float[Tensor, "g b t t q q"], Float[Tensor, "b h t t q"], Float[Tensor, "b h w"]]:
    """Compute the gradients of the similarities, summed over each group of heads, and what follows from all pairs.

    Returns:
        The gradients, in tiles as ``similarities`` makes them; for every token and head, the sums of ``shares``, the
        gradient of a log-decay that one pair adds, over the tokens of each earlier tile and those before it in its own:
        by tile of the token, other tile, and token in its tile; and the gradient of its step, but for its decay, from
        the later tokens of its own tile.
    """
    batch, heads, _ = steps.dt.shape
    count, tokens, width = tiles.shape[1], tiles.shape[-1], dy.shape[2] // heads
    most = max(1, heads // launches.pair_groups)
    group = max(each for each in range(1, most + 1) if heads % each == 0)
    dtiles = steps.dt.new_empty(heads // group, *tiles.shape)
    later, within = steps.dt.new_empty(batch, heads, count, count, tokens), torch.empty_like(steps.dt)
    sizes = active.shape[2], heads, width, tile(width), tokens
    _within_kernel[(count, heads // group, batch)](
        active, tiles, steps.dt, steps.total, dy, dtiles, later, within, active.shape[1], count, *sizes, group,
        **launches.within.options(),
    )  # fmt: skip
    if count > 1:
        _apart_kernel[((count - 1) ** 2, heads // group, batch)](
            active, tiles, steps.since, steps.left, dy, dtiles, later, active.shape[1], count, *sizes,
            triton.next_power_of_2(count), group, **launches.apart.options(),
        )  # fmt: skip
    return dtiles, later, within
