"""The SSD of short sequences without states, for training on CUDA: three Triton kernels.

With ``total`` the running sum of log-decays, an SSD that starts from zeros is

    y_t = sum over s <= t of (C_t . B_s) exp(total_t - total_s) dt_s x_s

(Dao and Gu, arXiv 2405.21060, section 5). The similarities ``S_ts = C_t . B_s`` are the same for all heads. So they are
computed once, and a head is left with one product of S, weighted by its decays, with its inputs: fewer operations than
the chunked form up to about a thousand tokens, no states in memory, and every tile of tokens in parallel.
Running sums start anew in every tile of Q tokens, so that they stay exact; between two tiles the decay is a product of
a row's, a column's and that of the tiles between. Matrix products take numbers in the dtype of x and add up in float32;
decays are float32. The backward pass is in ``quadratic_backward``.

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
from aimamba.ops.triton.functions import LOG2_E, softplus

HEADS = 16
"""Heads of a program that computes step sizes."""


class Launches(NamedTuple):
    """How all kernels are launched.

    Attributes:
        tokens: Tokens of a tile (Q), a power of two, at least 16.
        output: The kernel of the outputs.
        inputs: The kernel of the gradients of the inputs.
        within: The kernel of the gradients of similarities of tokens in one tile.
        apart: The same for tokens in two tiles.
        pair_groups: Programs of these kernels that share the heads of a row; more if they do not divide them.
    """

    tokens: int
    output: Launch
    inputs: Launch
    within: Launch
    apart: Launch
    pair_groups: int


LAUNCHES = {  # the first as measured on an H200, see docs/log.md
    torch.bfloat16: Launches(64, Launch(4, 1), Launch(4, 1, 128), Launch(4, 1), Launch(4, 2), 4),
    torch.float32: Launches(32, Launch(4, 2), Launch(4, 2), Launch(4, 2), Launch(4, 2), 4),
}


class Steps(NamedTuple):
    """Step sizes and decays of all heads, float32, padded to whole tiles: a token beyond the last has a step of 0."""

    dt: Float[Tensor, "b h w"]
    total: Float[Tensor, "b h w"]  # log-decay from the start of its tile up to each token
    since: Float[Tensor, "b h w"]  # decay from the start of its tile up to each token
    left: Float[Tensor, "b h w"]  # what is left of each step at the end of its tile


@triton.jit
@no_type_check
def _steps_kernel(
    projected, dt_bias, A_log, dt, total, since, left, L, width,
    Z: tl.constexpr, START: tl.constexpr, H: tl.constexpr, HEADS: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(2).to(tl.int64)
    token, head = tl.program_id(0) * Q + tl.arange(0, Q), tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    inside = (token < L)[:, None] & (head < H)[None, :]
    raw = tl.load(projected + (row * L + token)[:, None] * Z + START + head[None, :], mask=inside, other=0.0)
    raw = raw.to(tl.float32) + tl.load(dt_bias + head, mask=head < H, other=0.0).to(tl.float32)[None, :]
    step = tl.where(inside, softplus(raw), 0.0)
    rate = -tl.exp(tl.load(A_log + head, mask=head < H, other=0.0).to(tl.float32))
    fading = tl.maximum(step * rate[None, :], LOWEST_LOG_DECAY)
    running = tl.cumsum(fading, axis=0)
    whole = tl.sum(fading, axis=0)
    place = (row * H + head)[None, :] * width + token[:, None]
    stored = (head < H)[None, :] & (token < width)[:, None]
    tl.store(dt + place, step, mask=stored)
    tl.store(total + place, running, mask=stored)
    tl.store(since + place, tl.exp(running), mask=stored)
    tl.store(left + place, step * tl.exp(whole[None, :] - running), mask=stored)


@triton.jit
@no_type_check
def decay_within(total, Q: tl.constexpr):
    """Return exp(total_t - total_s) for the tokens s <= t of a tile, and 1 for s > t: (Q, Q)."""
    scaled = total * LOG2_E  # fewer instructions than exp, which keeps denormal numbers
    return tl.exp2(tl.minimum(scaled[:, None] - scaled[None, :], 0.0))


@triton.jit
@no_type_check
def load_pair(tiles, i, j, T, Q: tl.constexpr):
    """Load the tile of pairs (t in tile i, s in tile j): (Q, Q)."""
    token = tl.arange(0, Q)
    return tl.load(tiles + (i * T + j) * Q * Q + token[:, None] * Q + token[None, :])


@triton.jit
@no_type_check
def _similarity_kernel(
    active, tiles, L, T,
    C: tl.constexpr, E: tl.constexpr, N: tl.constexpr, WIDE_N: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    j, i, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if j <= i:
        token, state = tl.arange(0, Q), tl.arange(0, WIDE_N)
        row_start = active + row * L * C + E
        b = load_tile(row_start, j * Q + token, C, state, L, N)
        c = load_tile(row_start + N, i * Q + token, C, state, L, N)
        pair = ((row * T + i) * T + j) * Q * Q + token[:, None] * Q + token[None, :]
        causal = (i > j) | (token[:, None] >= token[None, :])
        tl.store(tiles + pair, tl.where(causal, product(c, tl.trans(b)), 0.0).to(tiles.dtype.element_ty))


@triton.jit
@no_type_check
def _output_kernel(
    active, tiles, dt, total, since, left, skip, y, L, T,
    C: tl.constexpr, H: tl.constexpr, P: tl.constexpr, WIDE_P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    i, head, row = T - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    token, channel = tl.arange(0, Q), tl.arange(0, WIDE_P)
    x = active + row * L * C + head * P
    tiles += row * T * T * Q * Q
    own = (row * H + head) * T * Q
    sums = tl.zeros((Q, WIDE_P), dtype=tl.float32)
    between = 1.0  # decay of the tiles between
    for back in range(i):
        j = i - 1 - back
        place = j * Q + token
        weight = tl.load(left + own + place) * between
        inputs = load_tile(x, place, C, channel, L, P)
        similar = load_pair(tiles, i, j, T, Q)
        sums += product(similar.to(inputs.dtype), (inputs * weight[:, None]).to(inputs.dtype))
        between *= tl.load(since + own + j * Q + Q - 1)
    place = i * Q + token
    inputs = load_tile(x, place, C, channel, L, P)
    weights = decay_within(tl.load(total + own + place), Q) * tl.load(dt + own + place)[None, :]
    weights *= load_pair(tiles, i, i, T, Q).to(tl.float32)
    sums = sums * tl.load(since + own + place)[:, None] + product(weights.to(inputs.dtype), inputs)
    sums += tl.load(skip + head).to(tl.float32) * inputs
    store_tile(y + row * L * H * P + head * P, sums, place, H * P, channel, L, P)


def steps(
    projected: Float[Tensor, "b l z"], dt_bias: Float[Tensor, " h"], A_log: Float[Tensor, " h"], tokens: int
) -> Steps:
    """Compute step sizes, from the last H features of ``projected``, and log-decays within tiles of ``tokens``."""
    batch, length, features = projected.shape
    heads, width = len(A_log), triton.cdiv(length, tokens) * tokens
    found = Steps(*torch.empty(4, batch, heads, width, dtype=torch.float32, device=projected.device).unbind())
    _steps_kernel[(width // tokens, triton.cdiv(heads, HEADS), batch)](
        projected, dt_bias, A_log, *found, length, width, features, features - heads, heads, HEADS, tokens, num_warps=4
    )
    return found


def similarities(active: Float[Tensor, "b l c"], inner: int, tokens: int) -> Float[Tensor, "b t t q q"]:
    """Compute ``S_ts = C_t . B_s`` in tiles, with zeros for s > t; tiles above the diagonal are not written."""
    batch, length, channels = active.shape
    states, count = (channels - inner) // 2, triton.cdiv(length, tokens)
    tiles = active.new_empty(batch, count, count, tokens, tokens)
    _similarity_kernel[(count, count, batch)](
        active, tiles, length, count, channels, inner, states, tile(states), tokens, num_warps=4
    )
    return tiles


def ssd_quadratic(
    active: Float[Tensor, "b l c"],
    tiles: Float[Tensor, "b t t q q"],
    steps: Steps,
    skip: Float[Tensor, " h"],
    inner: int,
    *,
    launches: Launches | None = None,
) -> Float[Tensor, "b l e"]:
    """Compute the outputs of an SSD that starts from zeros, with the skip from its inputs added.

    Args:
        active: x of all heads, B and C, contiguous.
        tiles: From ``similarities``.
        steps: From ``steps``.
        skip: Skip of each head (D).
        inner: E.
        launches: How kernels are launched; by default as in ``LAUNCHES``.

    Returns:
        Outputs in the dtype of ``active``.
    """
    launch = (launches or LAUNCHES[active.dtype]).output
    batch, length, channels = active.shape
    heads, count, tokens = len(skip), tiles.shape[1], tiles.shape[-1]
    width = inner // heads
    y = active.new_empty(batch, length, inner)
    _output_kernel[(count, heads, batch)](
        active, tiles, *steps, skip, y, length, count, channels, heads, width, tile(width), tokens,
        **launch.options(),
    )  # fmt: skip
    return y
