"""The backward pass of the chunked SSD as two kernels: see ``aimamba.ops.ssd.triton.chunked``.

The first kernel walks over the chunks from the last to the first and writes the gradient of every state between them.
A program of the second kernel handles one chunk of a few heads of a row and computes everything else. ``B`` and ``C``
are shared by all heads: a program adds up the gradients of its heads, and torch those of a row's programs. There are no
atomic additions, so results are the same in every run.
"""

import functools
import math
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from aimamba.ops.ssd.triton import forward as scan_forward
from aimamba.ops.ssd.triton.forward import (
    LOWEST_LOG_DECAY,
    decay_between,
    load_steps,
    load_tile,
    product,
    sizes,
    store_tile,
)


class Launch(NamedTuple):
    """How the second kernel is launched. Changes speed, and results by no more than rounding.

    Attributes:
        heads: Maximum number of heads of a program; fewer if it does not divide the model's heads.
        warps: Warps of a program.
        stages: Pipeline stages of the loop over heads.
    """

    heads: int
    warps: int
    stages: int


# The second kernel needs more numbers than fit into registers: of all layouts tried, this one spills the fewest.
CHUNK = Launch(heads=8, warps=8, stages=1)


class Gradients(NamedTuple):
    """Gradients of the arguments of the forward pass; None for the initial state if there was none."""

    x: Tensor  # (B, L, H, P), as x
    dt: Tensor  # (B, L, H), float32
    A: Tensor  # (H,), float32
    B: Tensor  # (B, L, N), float32
    C: Tensor  # (B, L, N), float32
    initial_state: Tensor | None  # (B, H, P, N), float32


@triton.jit(do_not_specialize=("L", "chunks"))
@no_type_check
def _states_kernel(
    dt, A, C, dy, dlast, after, dfirst, L, chunks, C_row, C_token,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    WIDE_P: tl.constexpr, WIDE_N: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel, state = tl.arange(0, WIDE_P), tl.arange(0, WIDE_N)
    own = (row * H + head) * P * N
    C += row * C_row
    dt += row * L * H + head
    dy += row * L * H * P + head * P
    rate = tl.load(A + head)
    g = tl.zeros((WIDE_P, WIDE_N), dtype=tl.float32)
    if LAST:
        g += load_tile(dlast + own, channel, N, state, P, N).to(tl.float32)
    for back in range(chunks):
        k = chunks - 1 - back
        if LAST or back > 0:  # a gradient of zeros after the last chunk is not written
            kept = (row * (chunks - 1 + LAST) + k) * H * P * N + head * P * N
            store_tile(after + kept, g, channel, N, state, P, N)
        place = k * Q + tl.arange(0, Q)
        _, total, whole = load_steps(dt, rate, place, L, H, Q)
        c = load_tile(C, place, C_token, state, L, N)
        gradient = load_tile(dy, place, H * P, channel, L, P)
        read = (gradient * tl.exp(total)[:, None]).to(c.dtype)
        g = g * tl.exp(whole) + product(tl.trans(read), c)
    if FIRST:
        store_tile(dfirst + own, g, channel, N, state, P, N)


@triton.jit(do_not_specialize=("L", "chunks"))
@no_type_check
def _chunk_kernel(
    x, dt, A, B, C, dy, carried, after, dx, ddt, dA, dB, dC,
    L, chunks, x_row, x_token, x_head, B_row, B_token, C_row, C_token,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    WIDE_P: tl.constexpr, WIDE_N: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    k, group, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel, state, token = tl.arange(0, WIDE_P), tl.arange(0, WIDE_N), tl.arange(0, Q)
    place = k * Q + token
    known_first, known_last = (k > 0) | FIRST, (k < chunks - 1) | LAST  # states of zeros are not in memory
    b = load_tile(B + row * B_row, place, B_token, state, L, N)
    c = load_tile(C + row * C_row, place, C_token, state, L, N)
    similarity = product(c, tl.trans(b))
    below = token[:, None] > token[None, :]
    dsimilarity = tl.zeros((Q, Q), dtype=tl.float32)
    db = tl.zeros((Q, WIDE_N), dtype=tl.float32)
    dc = tl.zeros((Q, WIDE_N), dtype=tl.float32)
    for head in range(group * GROUP, group * GROUP + GROUP):
        rate = tl.load(A + head)
        steps, total, whole = load_steps(dt + row * L * H + head, rate, place, L, H, Q)
        inputs = load_tile(x + row * x_row + head * x_head, place, x_token, channel, L, P)
        gradient = load_tile(dy + row * L * H * P + head * P, place, H * P, channel, L, P)

        # Products within the chunk. The exponent between a token and itself is zero and has no gradient.
        decay = decay_between(total, Q)
        weights = (similarity * decay * steps[None, :]).to(inputs.dtype)
        dinputs = product(tl.trans(weights), gradient)
        shares = decay * product(gradient, tl.trans(inputs))
        dsimilarity += shares * steps[None, :]
        shares *= similarity
        dsteps = tl.sum(shares, axis=0)
        shares = tl.where(below, shares * steps[None, :], 0.0)
        dtotal = tl.sum(shares, axis=1) - tl.sum(shares, axis=0)

        # Reading the state before the chunk.
        held = (row * (chunks - 1 + FIRST) + k - 1 + FIRST) * H * P * N + head * P * N
        h = load_tile(carried + held, channel, N, state, P * known_first, N)
        from_start = tl.exp(total)
        read = product(gradient, h) * from_start[:, None]
        dc += read
        dtotal += tl.sum(read * c, axis=1)

        # Adding to the state after the chunk.
        held = (row * (chunks - 1 + LAST) + k) * H * P * N + head * P * N
        g = load_tile(after + held, channel, N, state, P * known_last, N)
        to_end = tl.exp(whole - total)
        dadded = product(b, tl.trans(g)) * to_end[:, None]
        dinputs += dadded * steps[:, None]
        direct = tl.sum(dadded * inputs, axis=1)
        db += product((inputs * (steps * to_end)[:, None]).to(g.dtype), g)

        # A token's log-decay is in the decays from the start to itself and later tokens, and in those from earlier
        # tokens to the end.
        across = tl.exp(whole) * tl.sum(tl.sum(h.to(tl.float32) * g.to(tl.float32), axis=1), axis=0)
        spanned = tl.where(below | (token[:, None] == token[None, :]), dtotal[:, None], (direct * steps)[:, None])
        dlog = tl.sum(spanned, axis=0) + across
        dlog = tl.where((steps * rate >= LOWEST_LOG_DECAY) & (place < L), dlog, 0.0)
        store_tile(dx + row * L * H * P + head * P, dinputs, place, H * P, channel, L, P)
        tl.store(ddt + (row * L + place) * H + head, dsteps + direct + dlog * rate, mask=place < L)
        tl.store(dA + (row * chunks + k) * H + head, tl.sum(dlog * steps, axis=0))
    shared = dsimilarity.to(b.dtype)
    db += product(tl.trans(shared), c)
    dc += product(shared, b)
    own = (row * (H // GROUP) + group) * L * N
    store_tile(dB + own, db, place, N, state, L, N)
    store_tile(dC + own, dc, place, N, state, L, N)


def backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    carried: Tensor,
    dy: Tensor,
    dlast: Tensor | None,
    *,
    chunk: int,
    first: bool,
    states_launch: scan_forward.Launch | None = None,
    chunk_launch: Launch = CHUNK,
) -> Gradients:
    """Run the backward kernels.

    Args:
        x: Input of the forward pass, as ``forward`` takes it.
        dt: Likewise.
        A: Likewise.
        B: Likewise.
        C: Likewise.
        carried: States before the chunks, from the forward pass.
        dy: Gradient of the outputs, contiguous, in the dtype of ``x``.
        dlast: Gradient of the last state, contiguous, or None for zeros.
        chunk: Tokens of a chunk, as in the forward pass.
        first: Whether there was an initial state.
        states_launch: How the first kernel is launched; by default like the forward kernel.
        chunk_launch: How the second kernel is launched.

    Returns:
        The gradients of all inputs.
    """
    batch, length, heads, width = x.shape
    states, chunks, last = B.shape[2], triton.cdiv(length, chunk), dlast is not None
    states_launch = states_launch or scan_forward.LAUNCHES[x.dtype]
    wide = functools.partial(torch.empty, dtype=torch.float32, device=x.device)
    after = x.new_empty(batch, chunks - 1 + last, heads, width, states)
    dfirst = wide(batch, heads, width, states) if first else None
    unused = after  # any pointer will do for what is neither read nor written
    lengths, compiled = (length, chunks), sizes(x, B, chunk)
    _states_kernel[(heads, batch)](
        dt, A, C, dy, dlast if last else unused, after, dfirst if first else unused, *lengths, *C.stride()[:2],
        *compiled, first, last, **states_launch.options(),
    )  # fmt: skip
    group = math.gcd(heads, chunk_launch.heads)
    dx, ddt = torch.empty(x.shape, dtype=x.dtype, device=x.device), wide(dt.shape)
    dA = wide(batch, chunks, heads)
    dB, dC = (wide(batch, heads // group, length, states) for _ in range(2))
    _chunk_kernel[(chunks, heads // group, batch)](
        x, dt, A, B, C, dy, carried, after, dx, ddt, dA, dB, dC, *lengths,
        *x.stride()[:3], *B.stride()[:2], *C.stride()[:2], *compiled, first, last, group,
        num_warps=chunk_launch.warps, num_stages=chunk_launch.stages,
    )  # fmt: skip
    return Gradients(dx, ddt, dA.sum(dim=(0, 1)), dB.sum(dim=1), dC.sum(dim=1), dfirst)
