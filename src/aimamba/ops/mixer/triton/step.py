"""A decoding step of a mixer as one Triton kernel, in both forms of the SSD: see ``aimamba.ops.mixer.step``.

A program handles one row and a few heads. Each program computes B and C of its token again (256 channels of four taps,
read from the level-2 cache), which is cheaper than a separate kernel. Programs of one row read the same inputs and
write disjoint parts, so their order does not matter. There are no atomic additions: results are the same in every run.

Shape letters: see ``aimamba.ops.mixer.step``; heads come in G groups a row.
"""

import math
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.ops.mixer.weights import MixerWeights


class Launch(NamedTuple):
    """How a kernel is launched on the device. Changes speed, and results by no more than rounding.

    Attributes:
        heads: Maximum number of heads of a program, a power of two; fewer if it does not divide the model's heads.
        tokens: Cached tokens that a program reads at once, a power of two; unused in the state form.
        warps: Warps of a program.
        stages: Pipeline stages of the loop over tokens.
    """

    heads: int
    tokens: int
    warps: int
    stages: int


# A log decay below which nothing of a token is left: e^-30 = 1e-13, where float32 resolves 6e-8.
FORGOTTEN = tl.constexpr(-30.0)

# Chosen by the instructions and registers of the compiled code, not yet by measurement. With few rows the time of one
# program matters, so programs are small and many. With many rows the number of instructions matters, so several heads
# share one load of B.
STATE = Launch(heads=1, tokens=1, warps=8, stages=1)
DUAL: dict[int, Launch] = {  # by the maximum number of rows
    8: Launch(heads=1, tokens=64, warps=8, stages=2),
    32: Launch(heads=4, tokens=16, warps=4, stages=2),
    2**31: Launch(heads=8, tokens=16, warps=4, stages=2),
}


@triton.jit
@no_type_check
def _silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
@no_type_check
def _softplus(x):
    """Return ``log(1 + exp(x))``; the quotient corrects the rounding of ``1 + small``, which small steps need."""
    small = tl.exp(-tl.abs(x))
    one = 1 + small
    exact = tl.where(one == 1, small, tl.log(one) * (small / tl.where(one == 1, 1.0, one - 1)))
    return tl.maximum(x, 0.0) + exact


@triton.jit
@no_type_check
def _convolve(new_row, window_row, conv_weight, conv_bias, channel, position, TAPS: tl.constexpr, C: tl.constexpr):
    """Convolve some channels of one row's token; return the result and the input. ``window_row`` is a ring."""
    new = tl.load(new_row + channel)
    sums = tl.load(conv_bias + channel).to(tl.float32)
    sums += new.to(tl.float32) * tl.load(conv_weight + channel * TAPS + TAPS - 1).to(tl.float32)
    for age in tl.static_range(1, TAPS):
        slot = (position + TAPS - age) % TAPS
        earlier = tl.load(window_row + slot * C + channel, mask=position >= age, other=0.0)
        sums += earlier.to(tl.float32) * tl.load(conv_weight + channel * TAPS + TAPS - 1 - age).to(tl.float32)
    return _silu(sums), new


@triton.jit
@no_type_check
def _token(
    projected, window, conv_weight, conv_bias, dt_bias, A_log, row, group, position,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Return one row's token for the heads of a group: x (GROUP P,), B, C, dt, A. Write its input into the window."""
    E: tl.constexpr = H * P
    C: tl.constexpr = E + 2 * N
    own = group * GROUP * P + tl.arange(0, GROUP * P)
    shared = E + tl.arange(0, 2 * N)  # B, then C
    new_row = projected + row * (E + C + H) + E
    window_row = window + row * TAPS * C
    slot = window_row + (position % TAPS) * C
    x, new = _convolve(new_row, window_row, conv_weight, conv_bias, own, position, TAPS, C)
    tl.store(slot + own, new)
    both, new = _convolve(new_row, window_row, conv_weight, conv_bias, shared, position, TAPS, C)
    tl.store(slot + shared, new, mask=group == 0)
    b, c = tl.split(tl.trans(tl.reshape(both, (2, N))))
    head = group * GROUP + tl.arange(0, GROUP)
    dt = _softplus(tl.load(new_row + C + head).to(tl.float32) + tl.load(dt_bias + head).to(tl.float32))
    A = -tl.exp(tl.load(A_log + head).to(tl.float32))
    return x, b, c, dt, A


@triton.jit
@no_type_check
def _finish(
    y, x, projected, D, norm_weight, gated, squares, row, group,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Add the skip, gate and apply the norm's scale; y is (GROUP, P), x is (GROUP P,)."""
    E: tl.constexpr = H * P
    own = group * GROUP * P + tl.arange(0, GROUP * P)
    z = tl.load(projected + row * (2 * E + 2 * N + H) + own).to(tl.float32)
    y = (tl.reshape(y, (GROUP * P,)) + tl.load(D + own // P).to(tl.float32) * x) * _silu(z)
    tl.store(squares + row * (H // GROUP) + group, tl.sum(y * y, axis=0))
    tl.store(gated + row * E + own, (y * tl.load(norm_weight + own)).to(gated.dtype.element_ty))


@triton.jit
@no_type_check
def _state_kernel(
    projected, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, window, ssm, positions, gated, squares,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    group, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    position = tl.load(positions + row).to(tl.int32)
    x, b, c, dt, A = _token(
        projected, window, conv_weight, conv_bias, dt_bias, A_log, row, group, position, H, P, N, TAPS, GROUP
    )
    head = group * GROUP + tl.arange(0, GROUP)
    channel = head[:, None] * P + tl.arange(0, P)[None, :]
    cell = (ssm + row * H * P * N) + channel[:, :, None] * N + tl.arange(0, N)[None, None, :]  # (GROUP, P, N)
    state = tl.load(cell, mask=position > 0, other=0.0)
    update = dt[:, None] * tl.reshape(x, (GROUP, P))
    state = state * tl.exp(dt * A)[:, None, None] + update[:, :, None] * b[None, None, :]
    tl.store(cell, state)
    y = tl.sum(state * c[None, None, :], axis=2)
    _finish(y, x, projected, D, norm_weight, gated, squares, row, group, H, P, N, GROUP)


@triton.jit
@no_type_check
def _dual_kernel(
    projected, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, window, B_cache, x_cache, dt_cache, positions,
    gated, squares, capacity,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    position = tl.load(positions + row).to(tl.int32)
    x, b, c, dt, A = _token(
        projected, window, conv_weight, conv_bias, dt_bias, A_log, row, group, position, H, P, N, TAPS, GROUP
    )
    head = group * GROUP + tl.arange(0, GROUP)
    inside, state = tl.arange(0, P), tl.arange(0, N)
    x_rows = x_cache + (row * H + head) * capacity * P  # (GROUP,)
    dt_rows = dt_cache + (row * H + head) * capacity
    B_row = B_cache + row * capacity * N
    own = tl.arange(0, GROUP * P)
    x_now = x_cache + row * H * capacity * P + ((group * GROUP + own // P) * capacity + position) * P + own % P
    tl.store(x_now, x.to(x_cache.dtype.element_ty))
    tl.store(dt_rows + position, dt)
    tl.store(B_row + position * N + state, b.to(B_cache.dtype.element_ty), mask=group == 0)

    # From the latest token back to the first, so that sums of log-decays start with the recent tokens, where precision
    # matters. Programs read only slots of past tokens, which no program writes in this step.
    sums = tl.zeros((BLOCK, GROUP, P), dtype=tl.float32)  # added up at the end: no sum over threads within the loop
    later = dt * A  # log-decay of the tokens from the block to the present one, included
    for start in range(0, position, BLOCK):
        slot = position - 1 - start - tl.arange(0, BLOCK)
        known = slot >= 0
        # Tokens that a head has forgotten are not read. (BLOCK, GROUP), like everything for tokens and heads.
        remembered = known[:, None] & (later > FORGOTTEN)[None, :]
        keys = tl.load(B_row + slot[:, None] * N + state[None, :], mask=known[:, None], other=0.0)
        values = tl.load(
            x_rows[None, :, None] + slot[:, None, None] * P + inside[None, None, :],
            mask=remembered[:, :, None],
            other=0.0,
        )  # (BLOCK, GROUP, P)
        steps = tl.load(dt_rows[None, :] + slot[:, None], mask=remembered, other=0.0)
        # A token decays by the steps of all later tokens, so its own step is left out.
        has_next = remembered & (slot + 1 < position)[:, None]
        following = tl.load(dt_rows[None, :] + slot[:, None] + 1, mask=has_next, other=0.0) * A[None, :]
        decay = tl.exp(later[None, :] + tl.cumsum(following, axis=0))
        later += tl.sum(following, axis=0)
        similarity = tl.sum(keys.to(tl.float32) * c[None, :], axis=1)  # (BLOCK,)
        weight = similarity[:, None] * steps * decay
        sums += weight[:, :, None] * values.to(tl.float32)
    present = dt * tl.sum(b * c, axis=0)
    y = tl.sum(sums, axis=0) + present[:, None] * tl.reshape(x, (GROUP, P))
    _finish(y, x, projected, D, norm_weight, gated, squares, row, group, H, P, N, GROUP)


def state_mixer_step(
    projected: Float[Tensor, "b f"],
    weights: MixerWeights,
    window: Float[Tensor, "b k c"],
    ssm: Float[Tensor, "b h p n"],
    position: Int[Tensor, " b"],
    *,
    launch: Launch = STATE,
) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b g"]]:
    """Compute ``aimamba.ops.mixer.step.state_mixer_step``; P and N must be powers of two, and the state float32."""
    rows, heads, width, states = ssm.shape
    group = math.gcd(heads, launch.heads)
    gated, squares = _results(projected, heads, width, group)
    _state_kernel[(heads // group, rows)](
        projected, *weights, window, ssm, position, gated, squares,
        heads, width, states, window.shape[1], group, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return gated, squares


def dual_mixer_step(
    projected: Float[Tensor, "b f"],
    weights: MixerWeights,
    window: Float[Tensor, "b k c"],
    B_cache: Float[Tensor, "b t n"],
    x_cache: Float[Tensor, "b h t p"],
    dt_cache: Float[Tensor, "b h t"],
    position: Int[Tensor, " b"],
    *,
    launch: Launch | None = None,
) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b g"]]:
    """Compute ``aimamba.ops.mixer.step.dual_mixer_step``; P and N must be powers of two, and ``dt_cache`` float32.

    Without ``launch`` the number of rows decides.
    """
    rows, heads, capacity, width = x_cache.shape
    if launch is None:
        launch = next(launch for most, launch in DUAL.items() if rows <= most)
    group = math.gcd(heads, launch.heads)
    gated, squares = _results(projected, heads, width, group)
    _dual_kernel[(heads // group, rows)](
        projected, *weights, window, B_cache, x_cache, dt_cache, position, gated, squares, capacity,
        heads, width, B_cache.shape[2], window.shape[1], group, launch.tokens,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return gated, squares


def _results(projected: Tensor, heads: int, width: int, group: int) -> tuple[Tensor, Tensor]:
    """Return empty tensors for the results. ``projected`` must be contiguous, as the kernels address it."""
    assert projected.is_contiguous()
    rows = projected.shape[0]
    gated = projected.new_empty(rows, heads * width)
    return gated, projected.new_empty(rows, heads // group, dtype=torch.float32)
