"""The forward pass of the chunked SSD as one kernel: see ``aimamba.ops.ssd.triton.chunked``.

A program handles one head of one row and walks over its chunks with the state in registers. So chunk states, state
passing and chunk scan (arXiv 2405.21060, section 6) are one kernel: it reads every input once, and writes states only
if a backward pass will need them. Each head computes ``C B^T`` again although all heads share it, because that costs
less than writing it.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from aimamba.ops.ssd import reference
from aimamba.ops.triton import register_options

LOWEST_LOG_DECAY = tl.constexpr(reference.LOWEST_LOG_DECAY)
SMALLEST_TILE = 16  # the smallest side of a matrix product
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Launch(NamedTuple):
    """How a kernel is launched on the device. Changes speed, and results by no more than rounding.

    Attributes:
        warps: Warps of a program.
        stages: Pipeline stages of its loop.
        registers: The most that a thread may have; None for no limit.
    """

    warps: int
    stages: int
    registers: int | None = None

    def options(self) -> dict[str, int]:
        """Return the launch as Triton's options."""
        return {"num_warps": self.warps, "num_stages": self.stages} | register_options(self.registers)


# Chosen by the registers of the compiled code, not by measurement. Exact products of float32 cannot use tensor cores,
# and every thread holds whole rows of their operands, so their chunks are short (``chunked.chunk_length``).
LAUNCHES = {torch.bfloat16: Launch(warps=8, stages=2), torch.float32: Launch(warps=8, stages=1)}


class Sizes(NamedTuple):
    """Sizes that kernels are compiled for; WIDE_P and WIDE_N are P and N rounded up by ``tile``."""

    H: int
    P: int
    N: int
    Q: int
    WIDE_P: int
    WIDE_N: int


def tile(size: int) -> int:
    """Return the side of the tile that holds ``size`` numbers: a power of two."""
    return max(SMALLEST_TILE, triton.next_power_of_2(size))


def sizes(x: Tensor, B: Tensor, chunk: int) -> Sizes:
    """Return the sizes to compile the kernels for, given inputs x (B, L, H, P) and B (B, L, N)."""
    heads, width, states = *x.shape[2:], B.shape[2]
    return Sizes(heads, width, states, chunk, tile(width), tile(states))


@triton.jit
@no_type_check
def load_tile(pointer, place, stride, column, rows, columns):
    """Load rows of a matrix that are ``stride`` numbers apart; zeros beyond ``rows`` and ``columns``."""
    inside = (place < rows)[:, None] & (column < columns)[None, :]
    return tl.load(pointer + place[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
@no_type_check
def store_tile(pointer, tile, place, stride, column, rows, columns):
    """Store rows of a matrix as ``load_tile`` loads them, in the dtype of the pointer."""
    inside = (place < rows)[:, None] & (column < columns)[None, :]
    tl.store(pointer + place[:, None] * stride + column[None, :], tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def product(left, right):
    """Multiply matrices, with sums in float32; float32 inputs are not narrowed."""
    if INTERPRETED:  # the interpreter would multiply the bits of bfloat16 as integers
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
@no_type_check
def load_steps(dt, A, place, L, H: tl.constexpr, Q: tl.constexpr):
    """Load the step sizes of a chunk, and return the log-decays from its start to each token and to its end as well.

    Beyond the last token the step is zero, which leaves the state unchanged.
    """
    steps = tl.load(dt + place * H, mask=place < L, other=0.0)
    total = tl.cumsum(tl.maximum(steps * A, LOWEST_LOG_DECAY), axis=0)
    whole = tl.sum(tl.where(tl.arange(0, Q) == Q - 1, total, 0.0), axis=0)
    return steps, total, whole


@triton.jit
@no_type_check
def decay_between(total, Q: tl.constexpr):
    """Return exp(total_t - total_s) for s <= t, else 0: (Q, Q). Masked before the exponential."""
    token = tl.arange(0, Q)
    causal = token[:, None] >= token[None, :]
    return tl.exp(tl.where(causal, total[:, None] - total[None, :], -float("inf")))


@triton.jit(do_not_specialize=("L", "chunks"))
@no_type_check
def _forward_kernel(
    x, dt, A, B, C, first, y, carried, last, L, chunks, x_row, x_token, x_head, B_row, B_token, C_row, C_token,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
    WIDE_P: tl.constexpr, WIDE_N: tl.constexpr, FIRST: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel, state = tl.arange(0, WIDE_P), tl.arange(0, WIDE_N)
    own = (row * H + head) * P * N
    x += row * x_row + head * x_head
    y += row * L * H * P + head * P
    B += row * B_row
    C += row * C_row
    dt += row * L * H + head
    rate = tl.load(A + head)
    h = tl.zeros((WIDE_P, WIDE_N), dtype=tl.float32)
    if FIRST:
        h += load_tile(first + own, channel, N, state, P, N).to(tl.float32)
    for k in range(chunks):
        place = k * Q + tl.arange(0, Q)
        steps, total, whole = load_steps(dt, rate, place, L, H, Q)
        inputs = load_tile(x, place, x_token, channel, L, P)
        b = load_tile(B, place, B_token, state, L, N)
        c = load_tile(C, place, C_token, state, L, N)
        similarity = product(c, tl.trans(b))
        weights = similarity * decay_between(total, Q) * steps[None, :]
        read = product(c, tl.trans(h.to(c.dtype)))
        sums = product(weights.to(inputs.dtype), inputs) + tl.exp(total)[:, None] * read
        store_tile(y, sums, place, H * P, channel, L, P)
        if KEEP:  # a first state of zeros is not written
            slot = k - 1 + FIRST
            if slot >= 0:
                kept = (row * (chunks - 1 + FIRST) + slot) * H * P * N + head * P * N
                store_tile(carried + kept, h, channel, N, state, P, N)
        added = (inputs * (steps * tl.exp(whole - total))[:, None]).to(b.dtype)
        h = h * tl.exp(whole) + product(tl.trans(added), b)
    store_tile(last + own, h, channel, N, state, P, N)


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    *,
    chunk: int,
    keep: bool,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the forward kernel.

    Args:
        x: (B, L, H, P), contiguous in the last axis.
        dt: (B, L, H), float32, contiguous.
        A: (H,), float32.
        B: (B, L, N), contiguous in the last axis, in the dtype of ``x``.
        C: Like ``B``.
        initial_state: (B, H, P, N), contiguous, or None for zeros.
        chunk: Tokens of a chunk, a power of two, at least 16.
        keep: Whether a backward pass will follow.
        launch: How the kernel is launched; by default as in ``LAUNCHES``.

    Returns:
        Outputs (B, L, H, P), the last state (B, H, P, N) in float32, and the states before the chunks (B, K, H, P, N)
        in the dtype of ``x``. Without an initial state, that of the first chunk is left out; without ``keep``, all are.
    """
    batch, length, heads, width = x.shape
    launch = launch or LAUNCHES[x.dtype]
    states, chunks, given = B.shape[2], triton.cdiv(length, chunk), initial_state is not None
    y = x.new_empty(batch, length, heads, width)
    kept = chunks - 1 + given if keep else 0
    carried = x.new_empty(batch, kept, heads, width, states)
    last = x.new_empty(batch, heads, width, states, dtype=torch.float32)
    _forward_kernel[(heads, batch)](
        x, dt, A, B, C, initial_state if given else last, y, carried, last, length, chunks,
        *x.stride()[:3], *B.stride()[:2], *C.stride()[:2], *sizes(x, B, chunk), given, keep,
        **launch.options(),
    )  # fmt: skip
    return y, last, carried
