"""The causal convolution with SiLU inside a mixer, forward and backward: two Triton kernels.

Both read the convolved part straight from the input projection's output. The backward kernel computes the convolution
again, because that costs less than keeping its result. It adds up the gradients of the taps and of the bias over the
tokens of a row, without atomic additions, so that results are the same in every run.

Shape letters: B rows, L tokens, E inner width, C convolved channels, Z projected features.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.triton.functions import silu, silu_slope

MOST_TAPS = 4


class Launch(NamedTuple):
    """How a kernel is launched on the device. Changes speed, and results by no more than rounding.

    Attributes:
        tokens: Tokens that a program handles at once, a power of two.
        channels: Channels of a program, a power of two.
        warps: Warps of a program.
    """

    tokens: int
    channels: int
    warps: int


FORWARD = Launch(tokens=32, channels=64, warps=4)
BACKWARD = Launch(tokens=16, channels=64, warps=4)


@triton.jit
@no_type_check
def _load_tap(weight, channel, inside, tap: tl.constexpr, TAPS: tl.constexpr):
    """Load one of four taps of every channel; missing first ones are zero."""
    present = inside & (tap >= 4 - TAPS)
    return tl.load(weight + channel * TAPS + (tap - (4 - TAPS)), mask=present, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _load_tokens(pointer, token, stride, L, inside):
    """Load some channels of some tokens in float32; zeros before the first and after the last token."""
    known = ((token >= 0) & (token < L))[:, None] & inside[None, :]
    return tl.load(pointer + token[:, None] * stride, mask=known, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _forward_kernel(
    projected, weight, bias, active, L,
    Z: tl.constexpr, E: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(2).to(tl.int64)
    inside = channel < C
    source = projected + row * L * Z + E + channel[None, :]
    sums = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(4):
        if tap >= 4 - TAPS:
            values = _load_tokens(source, token + (tap - 3), Z, L, inside)
            sums += values * _load_tap(weight, channel, inside, tap, TAPS)[None, :]
    target = active + (row * L + token[:, None]) * C + channel[None, :]
    tl.store(target, silu(sums).to(active.dtype.element_ty), mask=(token < L)[:, None] & inside[None, :])


@triton.jit
@no_type_check
def _backward_kernel(
    projected, weight, bias, dactive, dprojected, sums, L,
    Z: tl.constexpr, E: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(1).to(tl.int64)
    inside = channel < C
    source = projected + row * L * Z + E + channel[None, :]
    target = dprojected + row * L * Z + E + channel[None, :]
    given = dactive + row * L * C + channel[None, :]
    b = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    w0 = _load_tap(weight, channel, inside, 0, TAPS)[None, :]
    w1 = _load_tap(weight, channel, inside, 1, TAPS)[None, :]
    w2 = _load_tap(weight, channel, inside, 2, TAPS)[None, :]
    w3 = _load_tap(weight, channel, inside, 3, TAPS)[None, :]
    sum0 = tl.zeros((TOKENS, CHANNELS), dtype=tl.float32)
    sum1 = tl.zeros((TOKENS, CHANNELS), dtype=tl.float32)
    sum2 = tl.zeros((TOKENS, CHANNELS), dtype=tl.float32)
    sum3 = tl.zeros((TOKENS, CHANNELS), dtype=tl.float32)
    total = tl.zeros((TOKENS, CHANNELS), dtype=tl.float32)
    for start in range(0, L, TOKENS):
        token = start + tl.arange(0, TOKENS)
        past3 = _load_tokens(source, token - 3, Z, L, inside)
        past2 = _load_tokens(source, token - 2, Z, L, inside)
        past1 = _load_tokens(source, token - 1, Z, L, inside)
        now = _load_tokens(source, token, Z, L, inside)
        next1 = _load_tokens(source, token + 1, Z, L, inside)
        next2 = _load_tokens(source, token + 2, Z, L, inside)
        next3 = _load_tokens(source, token + 3, Z, L, inside)
        # Gradients of the sums of this token and of the next three, which contain this token.
        d0 = _load_tokens(given, token, C, L, inside)
        d1 = _load_tokens(given, token + 1, C, L, inside)
        d2 = _load_tokens(given, token + 2, C, L, inside)
        d3 = _load_tokens(given, token + 3, C, L, inside)
        d0 *= silu_slope(b + w0 * past3 + w1 * past2 + w2 * past1 + w3 * now)
        d1 *= silu_slope(b + w0 * past2 + w1 * past1 + w2 * now + w3 * next1)
        d2 *= silu_slope(b + w0 * past1 + w1 * now + w2 * next1 + w3 * next2)
        d3 *= silu_slope(b + w0 * now + w1 * next1 + w2 * next2 + w3 * next3)
        result = w3 * d0 + w2 * d1 + w1 * d2 + w0 * d3
        known = (token < L)[:, None] & inside[None, :]
        tl.store(target + token[:, None] * Z, result.to(dprojected.dtype.element_ty), mask=known)
        sum0 += d0 * past3
        sum1 += d0 * past2
        sum2 += d0 * past1
        sum3 += d0 * now
        total += d0
    own = sums + row * 5 * C + channel
    tl.store(own, tl.sum(sum0, axis=0), mask=inside)
    tl.store(own + C, tl.sum(sum1, axis=0), mask=inside)
    tl.store(own + 2 * C, tl.sum(sum2, axis=0), mask=inside)
    tl.store(own + 3 * C, tl.sum(sum3, axis=0), mask=inside)
    tl.store(own + 4 * C, tl.sum(total, axis=0), mask=inside)


def causal_conv_silu(
    projected: Float[Tensor, "b l z"],
    weight: Float[Tensor, "c k"],
    bias: Float[Tensor, " c"],
    inner: int,
    *,
    launch: Launch = FORWARD,
) -> Float[Tensor, "b l c"]:
    """Compute ``aimamba.ops.conv.causal.causal_conv_silu`` of the C features after the first ``inner`` ones.

    Takes contiguous tensors and at most ``MOST_TAPS`` taps. The result has the dtype of ``projected``.
    """
    batch, length, features = projected.shape
    channels, taps = weight.shape
    active = projected.new_empty(batch, length, channels)
    grid = (triton.cdiv(channels, launch.channels), triton.cdiv(length, launch.tokens), batch)
    _forward_kernel[grid](
        projected, weight, bias, active, length, features, inner, channels, taps, launch.tokens, launch.channels,
        num_warps=launch.warps,
    )  # fmt: skip
    return active


def causal_conv_silu_backward(
    projected: Float[Tensor, "b l z"],
    weight: Float[Tensor, "c k"],
    bias: Float[Tensor, " c"],
    dactive: Float[Tensor, "b l c"],
    dprojected: Float[Tensor, "b l z"],
    inner: int,
    *,
    launch: Launch = BACKWARD,
) -> tuple[Float[Tensor, "c k"], Float[Tensor, " c"]]:
    """Write the gradient of the C features of ``projected`` into ``dprojected``.

    Returns:
        The gradients of the taps and of the bias, in float32.
    """
    batch, length, features = projected.shape
    channels, taps = weight.shape
    sums = torch.empty(batch, MOST_TAPS + 1, channels, dtype=torch.float32, device=projected.device)
    _backward_kernel[(triton.cdiv(channels, launch.channels), batch)](
        projected, weight, bias, dactive, dprojected, sums, length, features, inner, channels, taps,
        launch.tokens, launch.channels, num_warps=launch.warps,
    )  # fmt: skip
    total = sums.sum(dim=0)
    return total[MOST_TAPS - taps : MOST_TAPS].t(), total[MOST_TAPS]
