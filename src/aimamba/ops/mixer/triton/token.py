"""What both forms of a decoding step do for one token, as functions of Triton kernels: see ``aimamba.ops.mixer.step``.

They read what does not depend on the present token, convolve it, and finish the output of the SSD. Shape letters: see
``aimamba.ops.mixer.step``; GROUP heads of a program.
"""

from typing import no_type_check

import triton
import triton.language as tl

from aimamba.ops.triton.functions import silu, softplus


@triton.jit
@no_type_check
def _history(
    window_row, conv_weight, conv_bias, channel_stride, tap_stride, channel, position,
    TAPS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Return what earlier tokens add to some channels' convolution, and the newest tap. ``window_row`` is a ring."""
    sums = tl.load(conv_bias + channel).to(tl.float32)
    taps = conv_weight + channel * channel_stride
    for age in tl.static_range(1, TAPS):
        slot = (position + TAPS - age) % TAPS
        earlier = tl.load(window_row + slot * C + channel, mask=position >= age, other=0.0)
        sums += earlier.to(tl.float32) * tl.load(taps + (TAPS - 1 - age) * tap_stride).to(tl.float32)
    return sums, tl.load(taps + (TAPS - 1) * tap_stride).to(tl.float32)


@triton.jit
@no_type_check
def prepare(
    window, conv_weight, conv_bias, dt_bias, A_log, channel_stride, tap_stride, row, group, position,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Read what does not depend on the projection of the present token."""
    E: tl.constexpr = H * P
    C: tl.constexpr = E + 2 * N
    own = group * GROUP * P + tl.arange(0, GROUP * P)
    window_row = window + row * TAPS * C
    strides = channel_stride, tap_stride
    history, tap = _history(window_row, conv_weight, conv_bias, *strides, own, position, TAPS, C)
    shared = E + tl.arange(0, 2 * N)  # B, then C
    shared_history, shared_tap = _history(window_row, conv_weight, conv_bias, *strides, shared, position, TAPS, C)
    head = group * GROUP + tl.arange(0, GROUP)
    bias = tl.load(dt_bias + head).to(tl.float32)
    A = -tl.exp(tl.load(A_log + head).to(tl.float32))
    return history, tap, shared_history, shared_tap, bias, A


@triton.jit
@no_type_check
def read_scales(D, norm_weight, group, P: tl.constexpr, GROUP: tl.constexpr):
    """Read the weights of the skip and of the norm, (GROUP P,)."""
    own = group * GROUP * P + tl.arange(0, GROUP * P)
    return tl.load(D + own // P).to(tl.float32), tl.load(norm_weight + own)


@triton.jit
@no_type_check
def read_gate(projected, row, group, H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, GROUP: tl.constexpr):
    """Read z, (GROUP P,)."""
    z_row = projected + row * (2 * H * P + 2 * N + H)
    return tl.load(z_row + group * GROUP * P + tl.arange(0, GROUP * P)).to(tl.float32)


@triton.jit
@no_type_check
def make_token(
    projected, window, history, tap, shared_history, shared_tap, bias, row, group, position,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Return one row's token for the heads of a group: x (GROUP P,), B, C, dt. Write its input into the window."""
    E: tl.constexpr = H * P
    C: tl.constexpr = E + 2 * N
    own = group * GROUP * P + tl.arange(0, GROUP * P)
    shared = E + tl.arange(0, 2 * N)
    head = group * GROUP + tl.arange(0, GROUP)
    new_row = projected + row * (E + C + H) + E
    new = tl.load(new_row + own)
    new_shared = tl.load(new_row + shared)
    new_dt = tl.load(new_row + C + head).to(tl.float32)
    slot = window + row * TAPS * C + (position % TAPS) * C
    tl.store(slot + own, new)
    tl.store(slot + shared, new_shared, mask=group == 0)
    x = silu(history + new.to(tl.float32) * tap)
    both = silu(shared_history + new_shared.to(tl.float32) * shared_tap)
    b, c = tl.split(tl.trans(tl.reshape(both, (2, N))))
    return x, b, c, softplus(new_dt + bias)


@triton.jit
@no_type_check
def finish(
    y, x, z, skip, norm, gated, squares, row, group,
    H: tl.constexpr, P: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Add the skip, gate and apply the norm's scale; y is (GROUP, P), the others are (GROUP P,)."""
    own = group * GROUP * P + tl.arange(0, GROUP * P)
    y = (tl.reshape(y, (GROUP * P,)) + skip * x) * silu(z)
    tl.store(squares + row * (H // GROUP) + group, tl.sum(y * y, axis=0))
    tl.store(gated + row * H * P + own, (y * norm).to(gated.dtype.element_ty))
