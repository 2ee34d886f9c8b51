"""A decoding step of a mixer as one Triton kernel, in both forms of the SSD: see ``aimamba.ops.mixer.step``.

A program handles one row and a few heads. Each program computes B and C of its token again (256 channels of four taps,
read from the level-2 cache), which is cheaper than a separate kernel. Programs of one row read the same inputs and
write disjoint parts, so their order does not matter. There are no atomic additions: results are the same in every run.

With ``overlap`` a kernel starts while the one before it still runs (programmatic dependent launch). Until it waits for
that one, it reads only what no kernel of the same step writes: weights, positions, and the tokens before this one.

Shape letters: see ``aimamba.ops.mixer.step``; heads come in G groups a row.
"""

import math
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, Num
from torch import Tensor

from aimamba.ops.mixer.triton.cache import add_block, read_keys, read_values, read_weights, to_store
from aimamba.ops.mixer.triton.token import finish, make_token, prepare, read_gate, read_scales
from aimamba.ops.mixer.weights import MixerWeights
from aimamba.ops.triton import overlap_options


class Launch(NamedTuple):
    """How a kernel is launched on the device. Changes speed, and results by no more than rounding.

    Attributes:
        heads: Maximum number of heads of a program, a power of two; fewer if it does not divide the model's heads.
        tokens: Cached tokens that a program reads at once, a power of two; unused in the state form.
        warps: Warps of a program with so many heads; fewer if it has fewer.
        stages: With 1, the next tokens are read into registers while the present ones are added. With more, so many
            blocks of tokens are on their way into shared memory.
    """

    heads: int
    tokens: int
    warps: int
    stages: int

    def fitted(self, heads: int) -> "Launch":
        """Return the layout for a model with so many heads: as many of them as divide those, and warps to match."""
        group = math.gcd(heads, self.heads)
        return self._replace(heads=group, warps=max(1, self.warps * group // self.heads))


# With few rows the time of one program matters, so programs are small and many, and leave room for the next kernel.
# With many rows the bytes matter: 16 heads share one load of B, and two blocks of 16 KiB are on their way
# while a third is added up. With at most 168 registers three programs run on a multiprocessor.
STATE = Launch(heads=1, tokens=1, warps=8, stages=1)
DUAL: dict[int, Launch] = {  # by the maximum number of rows
    8: Launch(heads=1, tokens=64, warps=8, stages=1),
    32: Launch(heads=4, tokens=16, warps=4, stages=1),
    2**31: Launch(heads=16, tokens=8, warps=4, stages=3),
}
_VECTORS = 8, 16  # bytes of a thread's load of x, at least and at most
# Up to so many channels, and in 8 bits, registers suffice for a program to read what it needs last before its loop.
_EARLY = 256


@triton.jit
@no_type_check
def _state_kernel(
    projected, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, window, ssm, positions, gated, squares,
    channel_stride, tap_stride,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, GROUP: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    group, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    position = tl.load(positions + row).to(tl.int32)
    head = group * GROUP + tl.arange(0, GROUP)
    channel = head[:, None] * P + tl.arange(0, P)[None, :]
    cell = (ssm + row * H * P * N) + channel[:, :, None] * N + tl.arange(0, N)[None, None, :]  # (GROUP, P, N)
    state = tl.load(cell, mask=position > 0, other=0.0)
    history, tap, shared_history, shared_tap, bias, A = prepare(
        window, conv_weight, conv_bias, dt_bias, A_log, channel_stride, tap_stride, row, group, position,
        H, P, N, TAPS, GROUP,
    )  # fmt: skip
    skip, norm = read_scales(D, norm_weight, group, P, GROUP)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    z = read_gate(projected, row, group, H, P, N, GROUP)
    x, b, c, dt = make_token(
        projected, window, history, tap, shared_history, shared_tap, bias, row, group, position, H, P, N, TAPS, GROUP
    )
    update = dt[:, None] * tl.reshape(x, (GROUP, P))
    state = state * tl.exp(dt * A)[:, None, None] + update[:, :, None] * b[None, None, :]
    tl.store(cell, state)
    y = tl.sum(state * c[None, None, :], axis=2)
    finish(y, x, z, skip, norm, gated, squares, row, group, H, P, GROUP)


@triton.jit
@no_type_check
def _dual_kernel(
    projected, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, window, B_cache, x_cache, weight_cache,
    positions, gated, squares, capacity, channel_stride, tap_stride,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, GROUP: tl.constexpr,
    TOKENS: tl.constexpr, VECTOR: tl.constexpr, ADD: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr,
    OVERLAP: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    group, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    position = tl.load(positions + row).to(tl.int32)
    head = group * GROUP + tl.arange(0, GROUP)
    token = tl.arange(0, TOKENS)
    x_rows = x_cache + (row * H + head) * capacity * P  # (GROUP,)
    weight_rows = weight_cache + (row * H + head) * capacity
    B_row = B_cache + row * capacity * N
    if STAGES == 1:
        keys, weights = read_keys(B_row, token, position, N), read_weights(weight_rows, token, position)
        following_weights = read_weights(weight_rows, TOKENS + token, position)
    history, tap, shared_history, shared_tap, bias, A = prepare(
        window, conv_weight, conv_bias, dt_bias, A_log, channel_stride, tap_stride, row, group, position,
        H, P, N, TAPS, GROUP,
    )  # fmt: skip
    if STAGES == 1:
        values = read_values(x_rows, token, weights, P, VECTOR)
    if EARLY:
        skip, norm = read_scales(D, norm_weight, group, P, GROUP)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if EARLY:
        z = read_gate(projected, row, group, H, P, N, GROUP)
    x, b, c, dt = make_token(
        projected, window, history, tap, shared_history, shared_tap, bias, row, group, position, H, P, N, TAPS, GROUP
    )
    fresh, stored = to_store(x, dt, P, GROUP, INT8)
    # Programs read only slots of past tokens, and change only the weights of their own heads. The loop adds up tokens
    # only where a thread holds all tokens of its channels; otherwise threads exchange their sums once, at the end.
    sums = tl.zeros((1 if ADD else TOKENS, GROUP, P), dtype=tl.float32)
    if STAGES == 1:
        for start in range(0, position, TOKENS):
            slot = start + token
            following_keys = read_keys(B_row, TOKENS + slot, position, N)
            following_values = read_values(x_rows, TOKENS + slot, following_weights, P, VECTOR)
            later_weights = read_weights(weight_rows, 2 * TOKENS + slot, position)
            tl.debug_barrier()  # one warp stores the decayed weights, and all have read them two turns before
            sums = add_block(sums, keys, weights, values, weight_rows, slot, c, dt, fresh, A, ADD)
            keys, weights, values = following_keys, following_weights, following_values
            following_weights = later_weights
    else:
        for start in tl.range(0, position, TOKENS, num_stages=STAGES):
            slot = start + token
            keys = read_keys(B_row, slot, position, N)
            weights = read_weights(weight_rows, slot, position)
            values = read_values(x_rows, slot, weights, P, VECTOR)
            sums = add_block(sums, keys, weights, values, weight_rows, slot, c, dt, fresh, A, ADD)

    if not EARLY:
        skip, norm = read_scales(D, norm_weight, group, P, GROUP)
        z = read_gate(projected, row, group, H, P, N, GROUP)
    own = tl.arange(0, GROUP * P)
    x_now = x_cache + ((row * H + group * GROUP + own // P) * capacity + position) * P + own % P
    tl.store(x_now, stored.to(x_cache.dtype.element_ty))
    tl.store(weight_rows + position, fresh)
    tl.store(B_row + position * N + tl.arange(0, N), b.to(B_cache.dtype.element_ty), mask=group == 0)
    present = dt * tl.sum(b * c, axis=0)
    y = tl.sum(sums, axis=0) + present[:, None] * tl.reshape(x, (GROUP, P))
    finish(y, x, z, skip, norm, gated, squares, row, group, H, P, GROUP)


def state_mixer_step(
    projected: Float[Tensor, "b f"],
    weights: MixerWeights,
    window: Float[Tensor, "b k c"],
    ssm: Float[Tensor, "b h p n"],
    position: Int[Tensor, " b"],
    *,
    launch: Launch = STATE,
    overlap: bool = False,
) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b g"]]:
    """Compute ``aimamba.ops.mixer.step.state_mixer_step``; P and N must be powers of two, and the state float32.

    ``overlap``: see ``dual_mixer_step``.
    """
    options = overlap_options(projected, overlap)
    rows, heads, width, states = ssm.shape
    launch = launch.fitted(heads)
    gated, squares = new_results(projected, heads, width, launch.heads)
    _state_kernel[(heads // launch.heads, rows)](
        projected, *weights, window, ssm, position, gated, squares, *weights.conv_weight.stride(),
        heads, width, states, window.shape[1], launch.heads, bool(options),
        num_warps=launch.warps, num_stages=launch.stages, **options,
    )  # fmt: skip
    return gated, squares


def dual_mixer_step(
    projected: Float[Tensor, "b f"],
    weights: MixerWeights,
    window: Float[Tensor, "b k c"],
    B_cache: Float[Tensor, "b t n"],
    x_cache: Num[Tensor, "b h t p"],
    weight_cache: Float[Tensor, "b h t"],
    position: Int[Tensor, " b"],
    *,
    launch: Launch | None = None,
    overlap: bool = False,
) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b g"]]:
    """Compute ``aimamba.ops.mixer.step.dual_mixer_step``; P and N must be powers of two, and ``weight_cache`` float32.

    Without ``launch`` the number of rows decides. With ``overlap`` the kernel starts while the one before still runs,
    where the device can; that one must not have written the weights, ``position`` or earlier tokens of the caches,
    which are then read too early.
    """
    rows, heads, capacity, width = x_cache.shape
    launch = (launch or dual_launch(rows)).fitted(heads)
    gated, squares = new_results(projected, heads, width, launch.heads)
    options = overlap_options(projected, overlap)
    _dual_kernel[(heads // launch.heads, rows)](
        projected, *weights, window, B_cache, x_cache, weight_cache, position, gated, squares, capacity,
        *weights.conv_weight.stride(),
        H=heads, P=width, N=B_cache.shape[2], TAPS=window.shape[1], OVERLAP=bool(options),
        **sizes_of(launch, width, x_cache.dtype), num_warps=launch.warps, **options,
    )  # fmt: skip
    return gated, squares


def dual_launch(rows: int) -> Launch:
    """Return the layout of the dual form for a number of rows."""
    return next(launch for most, launch in DUAL.items() if rows <= most)


def sizes_of(launch: Launch, width: int, dtype: torch.dtype) -> dict[str, int | bool]:
    """Return the sizes that a fitted layout sets of the kernel of the dual form, for heads and a cache of x."""
    share, most = launch.heads * width // (32 * launch.warps), _VECTORS[1] // dtype.itemsize
    # Where the numbers of a token suffice for all threads, the threads read one token after the other together.
    one_token = share * dtype.itemsize >= _VECTORS[0]
    int8 = dtype == torch.int8
    return {
        "GROUP": launch.heads,
        "TOKENS": launch.tokens,
        "VECTOR": min(share, most) if one_token else most,
        "ADD": one_token,
        "STAGES": launch.stages,
        "EARLY": int8 or launch.heads * width <= _EARLY,
        "INT8": int8,
    }


def new_results(projected: Tensor, heads: int, width: int, group: int) -> tuple[Tensor, Tensor]:
    """Return empty tensors for the results. ``projected`` must be contiguous, as the kernels address it."""
    assert projected.is_contiguous()
    rows = projected.shape[0]
    gated = projected.new_empty(rows, heads * width)
    return gated, projected.new_empty(rows, heads // group, dtype=torch.float32)
