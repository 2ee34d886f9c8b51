"""The causal convolution with SiLU inside a mixer, forward and backward: two Triton kernels.

A program walks along some tokens of a row and keeps the last ones in registers, so it reads each number once, but for
three tokens at the borders. Both kernels read the convolved part straight from the input projection's output. The
backward kernel computes the convolution again, because that costs less than keeping its result, and adds up the
gradients of the taps and of the bias over its tokens. There are no atomic additions: results are the same in every run.

Shape letters: B rows, L tokens, E inner width, C convolved channels, Z projected features, G programs along a row.
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
        tokens: Tokens of a program, a multiple of 4.
        channels: Channels of a program, a power of two.
        warps: Warps of a program.
    """

    tokens: int
    channels: int
    warps: int


FORWARD = Launch(tokens=32, channels=128, warps=1)  # these two as measured on an H200, see docs/log.md
BACKWARD = Launch(tokens=64, channels=128, warps=1)


@triton.jit
@no_type_check
def _load_taps(weight, channel, inside, TAPS: tl.constexpr):
    """Load four taps of every channel, the oldest token's first; missing ones are zero."""
    taps = weight + channel * TAPS + (TAPS - 4)
    w0 = tl.load(taps, mask=inside & (TAPS > 3), other=0.0).to(tl.float32)
    w1 = tl.load(taps + 1, mask=inside & (TAPS > 2), other=0.0).to(tl.float32)
    w2 = tl.load(taps + 2, mask=inside & (TAPS > 1), other=0.0).to(tl.float32)
    return w0, w1, w2, tl.load(taps + 3, mask=inside, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _load_token(pointer, token, stride, L, inside):
    """Load some channels of a token; zeros before the first and after the last one."""
    return tl.load(pointer + token * stride, mask=inside & (token >= 0) & (token < L), other=0.0)


@triton.jit
@no_type_check
def _load_past(pointer, first, stride, L, inside):
    """Load the three tokens before ``first`` in float32, the oldest first."""
    past3 = _load_token(pointer, first - 3, stride, L, inside).to(tl.float32)
    past2 = _load_token(pointer, first - 2, stride, L, inside).to(tl.float32)
    return past3, past2, _load_token(pointer, first - 1, stride, L, inside).to(tl.float32)


@triton.jit
@no_type_check
def _load_four(pointer, token, stride, L, inside):
    """Load four tokens, in float32, before anything is computed: all four are on their way together."""
    x0 = _load_token(pointer, token, stride, L, inside)
    x1 = _load_token(pointer, token + 1, stride, L, inside)
    x2 = _load_token(pointer, token + 2, stride, L, inside)
    x3 = _load_token(pointer, token + 3, stride, L, inside)
    return x0.to(tl.float32), x1.to(tl.float32), x2.to(tl.float32), x3.to(tl.float32)


@triton.jit
@no_type_check
def _store_token(pointer, token, stride, values, first, L, inside):
    """Store some channels of a token from ``first`` to L - 1."""
    known = inside & (token >= first) & (token < L)
    tl.store(pointer + token * stride, values.to(pointer.dtype.element_ty), mask=known)


@triton.jit
@no_type_check
def _convolution_kernel(
    projected, weight, bias, active, L,
    Z: tl.constexpr, E: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.program_id(1) * TOKENS
    row = tl.program_id(2).to(tl.int64)
    inside = channel < C
    source = projected + row * L * Z + E + channel
    target = active + row * L * C + channel
    b = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    w0, w1, w2, w3 = _load_taps(weight, channel, inside, TAPS)
    past3, past2, past1 = _load_past(source, first, Z, L, inside)
    for token in range(first, tl.minimum(first + TOKENS, L), 4):
        x0, x1, x2, x3 = _load_four(source, token, Z, L, inside)
        _store_token(target, token, C, silu(b + w0 * past3 + w1 * past2 + w2 * past1 + w3 * x0), first, L, inside)
        _store_token(target, token + 1, C, silu(b + w0 * past2 + w1 * past1 + w2 * x0 + w3 * x1), first, L, inside)
        _store_token(target, token + 2, C, silu(b + w0 * past1 + w1 * x0 + w2 * x1 + w3 * x2), first, L, inside)
        _store_token(target, token + 3, C, silu(b + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3), first, L, inside)
        past3 = x1
        past2 = x2
        past1 = x3


@triton.jit
@no_type_check
def _convolution_backward_kernel(
    projected, weight, bias, dactive, dprojected, sums, L,
    Z: tl.constexpr, E: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.program_id(1) * TOKENS
    end = tl.minimum(first + TOKENS, L)
    row = tl.program_id(2).to(tl.int64)
    inside = channel < C
    source = projected + row * L * Z + E + channel
    target = dprojected + row * L * Z + E + channel
    given = dactive + row * L * C + channel
    b = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    w0, w1, w2, w3 = _load_taps(weight, channel, inside, TAPS)
    past3, past2, past1 = _load_past(source, first, Z, L, inside)
    # Gradients of the convolution's sums at the last three tokens. A token is in its own sum and in the next three.
    g3 = tl.zeros((CHANNELS,), dtype=tl.float32)
    g2 = tl.zeros((CHANNELS,), dtype=tl.float32)
    g1 = tl.zeros((CHANNELS,), dtype=tl.float32)
    sum0 = tl.zeros((CHANNELS,), dtype=tl.float32)
    sum1 = tl.zeros((CHANNELS,), dtype=tl.float32)
    sum2 = tl.zeros((CHANNELS,), dtype=tl.float32)
    sum3 = tl.zeros((CHANNELS,), dtype=tl.float32)
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    for token in range(first, end + 3, 4):
        x0, x1, x2, x3 = _load_four(source, token, Z, L, inside)
        d0, d1, d2, d3 = _load_four(given, token, C, L, inside)
        d0 *= silu_slope(b + w0 * past3 + w1 * past2 + w2 * past1 + w3 * x0)
        d1 *= silu_slope(b + w0 * past2 + w1 * past1 + w2 * x0 + w3 * x1)
        d2 *= silu_slope(b + w0 * past1 + w1 * x0 + w2 * x1 + w3 * x2)
        d3 *= silu_slope(b + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3)
        _store_token(target, token - 3, Z, w3 * g3 + w2 * g2 + w1 * g1 + w0 * d0, first, end, inside)
        _store_token(target, token - 2, Z, w3 * g2 + w2 * g1 + w1 * d0 + w0 * d1, first, end, inside)
        _store_token(target, token - 1, Z, w3 * g1 + w2 * d0 + w1 * d1 + w0 * d2, first, end, inside)
        _store_token(target, token, Z, w3 * d0 + w2 * d1 + w1 * d2 + w0 * d3, first, end, inside)
        if token < end:  # L, the end of the last program, may not be a multiple of 4, but no token is beyond it
            sum0 += d0 * past3 + d1 * past2 + d2 * past1 + d3 * x0
            sum1 += d0 * past2 + d1 * past1 + d2 * x0 + d3 * x1
            sum2 += d0 * past1 + d1 * x0 + d2 * x1 + d3 * x2
            sum3 += d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3
            total += d0 + d1 + d2 + d3
        past3 = x1
        past2 = x2
        past1 = x3
        g3 = d1
        g2 = d2
        g1 = d3
    own = sums + (row * tl.num_programs(1) + tl.program_id(1)) * 5 * C
    taps = tl.reshape(tl.join(tl.join(sum0, sum2), tl.join(sum1, sum3)), (CHANNELS, 4))  # as the weight has them
    tl.store(own + channel[:, None] * 4 + tl.arange(0, 4)[None, :], taps, mask=inside[:, None])
    tl.store(own + 4 * C + channel, total, mask=inside)


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
    _convolution_kernel[grid](
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
    parts = triton.cdiv(length, launch.tokens)
    sums = torch.empty(batch * parts, (MOST_TAPS + 1) * channels, dtype=torch.float32, device=projected.device)
    _convolution_backward_kernel[(triton.cdiv(channels, launch.channels), parts, batch)](
        projected, weight, bias, dactive, dprojected, sums, length, features, inner, channels, taps,
        launch.tokens, launch.channels, num_warps=launch.warps,
    )  # fmt: skip
    dweight, dbias = sums.sum(dim=0).split([MOST_TAPS * channels, channels])
    return dweight.view(channels, MOST_TAPS)[:, MOST_TAPS - taps :], dbias
