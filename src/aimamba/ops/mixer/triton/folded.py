"""A decoding step of a mixer by fold and replay as one Triton kernel: see ``aimamba.ops.mixer.step``.

A program handles one row and a few heads. It reads their state and the tokens cached since the last fold. When the
cache is full, the program folds it into the state, which it alone reads and writes; so a fold needs no other kernel,
and rows at different positions fold at different times in one recording. Nothing is read back from the device.

Overlap and shape letters: see ``aimamba.ops.mixer.triton.step``.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, Num
from torch import Tensor

from aimamba.ops.mixer.triton.cache import add_block, read_keys, read_values, read_weights, to_store, widen
from aimamba.ops.mixer.triton.step import Launch, new_results, sizes_of
from aimamba.ops.mixer.triton.token import finish, make_token, prepare, read_gate, read_scales
from aimamba.ops.mixer.weights import MixerWeights
from aimamba.ops.triton import overlap_options

FOLDED = Launch(heads=1, tokens=32, warps=8, stages=1)


@triton.jit
@no_type_check
def _outer(x_slot, key, weight, P: tl.constexpr):
    """Return the product of a cached x with a weight and with B, (GROUP, P, N); ``x_slot`` and weight are (GROUP,)."""
    values = widen(tl.load(x_slot[:, None] + tl.arange(0, P)[None, :])) * weight[:, None]
    return values[:, :, None] * key[None, None, :]


@triton.jit
@no_type_check
def _folded_kernel(
    projected, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, window, B_cache, x_cache, weight_cache,
    folded, carry, positions, gated, squares, capacity, every, channel_stride, tap_stride,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, GROUP: tl.constexpr,
    TOKENS: tl.constexpr, VECTOR: tl.constexpr, ADD: tl.constexpr, OVERLAP: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    group, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    position = tl.load(positions + row).to(tl.int32)
    begun = position >= capacity
    cached = tl.where(begun, (position - capacity) % every, position)
    full = cached + 1 == tl.where(begun, every, capacity)
    head, token = group * GROUP + tl.arange(0, GROUP), tl.arange(0, TOKENS)
    channel = head[:, None] * P + tl.arange(0, P)[None, :]
    cell = (folded + row * H * P * N) + channel[:, :, None] * N + tl.arange(0, N)[None, None, :]  # (GROUP, P, N)
    state = tl.load(cell, mask=begun, other=0.0).to(tl.float32)
    carries = carry + row * H + head
    before = tl.load(carries, mask=begun, other=0.0)
    x_rows = x_cache + (row * H + head) * capacity * P  # (GROUP,)
    weight_rows = weight_cache + (row * H + head) * capacity
    B_row = B_cache + row * capacity * N
    history, tap, shared_history, shared_tap, bias, A = prepare(
        window, conv_weight, conv_bias, dt_bias, A_log, channel_stride, tap_stride, row, group, position,
        H, P, N, TAPS, GROUP,
    )  # fmt: skip
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x, b, c, dt = make_token(
        projected, window, history, tap, shared_history, shared_tap, bias, row, group, position, H, P, N, TAPS, GROUP
    )
    fresh, stored = to_store(x, dt, P, GROUP, INT8)
    key = b.to(B_cache.dtype.element_ty)
    own = tl.arange(0, GROUP * P)
    x_now = x_cache + ((row * H + group * GROUP + own // P) * capacity + cached) * P + own % P
    tl.store(x_now, stored.to(x_cache.dtype.element_ty))
    decay = tl.exp(dt * A)
    left = before * decay
    y = left[:, None] * tl.sum(state * c[None, None, :], axis=2)
    tl.store(carries, tl.where(full, 1.0, left))
    if full:
        tl.debug_barrier()  # other threads of the program have stored x
        total = left[:, None, None] * tl.load(cell, mask=begun, other=0.0).to(tl.float32)
        for slot in range(0, cached):
            past = tl.load(B_row + slot * N + tl.arange(0, N)).to(tl.float32)
            total += _outer(x_rows + slot * P, past, tl.load(weight_rows + slot) * decay, P)
        total += _outer(x_rows + cached * P, key.to(tl.float32), fresh, P)
        tl.store(cell, total.to(folded.dtype.element_ty))
        tl.debug_barrier()  # from here on the weights change
    sums = tl.zeros((1 if ADD else TOKENS, GROUP, P), dtype=tl.float32)
    for start in range(0, cached, TOKENS):
        slot = start + token
        keys, weights = read_keys(B_row, slot, cached, N), read_weights(weight_rows, slot, cached)
        values = read_values(x_rows, slot, weights, P, VECTOR)
        tl.debug_barrier()  # one warp stores the decayed weights, and all have read them before
        sums = add_block(sums, keys, weights, values, weight_rows, slot, c, dt, fresh, A, ADD)
    skip, norm = read_scales(D, norm_weight, group, P, GROUP)
    z = read_gate(projected, row, group, H, P, N, GROUP)
    tl.store(weight_rows + cached, fresh)
    tl.store(B_row + cached * N + tl.arange(0, N), key, mask=group == 0)
    present = dt * tl.sum(b * c, axis=0)
    y += tl.sum(sums, axis=0) + present[:, None] * tl.reshape(x, (GROUP, P))
    finish(y, x, z, skip, norm, gated, squares, row, group, H, P, GROUP)


def folded_mixer_step(
    projected: Float[Tensor, "b f"],
    weights: MixerWeights,
    window: Float[Tensor, "b k c"],
    B_cache: Float[Tensor, "b t n"],
    x_cache: Num[Tensor, "b h t p"],
    weight_cache: Float[Tensor, "b h t"],
    folded: Float[Tensor, "b h p n"],
    carry: Float[Tensor, "b h"],
    position: Int[Tensor, " b"],
    *,
    every: int,
    launch: Launch = FOLDED,
    overlap: bool = False,
) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b g"]]:
    """Compute ``aimamba.ops.mixer.step.folded_mixer_step``.

    P and N must be powers of two, ``weight_cache`` and ``carry`` float32. ``overlap``: see ``dual_mixer_step``.
    """
    rows, heads, capacity, width = x_cache.shape
    assert 0 < every <= capacity
    launch = launch.fitted(heads)
    gated, squares = new_results(projected, heads, width, launch.heads)
    options = overlap_options(projected, overlap)
    _folded_kernel[(heads // launch.heads, rows)](
        projected, *weights, window, B_cache, x_cache, weight_cache, folded, carry, position, gated, squares,
        capacity, every, *weights.conv_weight.stride(),
        H=heads, P=width, N=B_cache.shape[2], TAPS=window.shape[1], OVERLAP=bool(options),
        **folded_sizes(launch, width, x_cache.dtype), num_warps=launch.warps, **options,
    )  # fmt: skip
    return gated, squares


def folded_sizes(launch: Launch, width: int, dtype: torch.dtype) -> dict[str, int | bool]:
    """Return the sizes that a fitted layout sets of the kernel, for heads and a cache of x."""
    sizes = sizes_of(launch, width, dtype)
    return {name: sizes[name] for name in ("GROUP", "TOKENS", "VECTOR", "ADD", "INT8")}
