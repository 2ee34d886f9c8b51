"""The cache of a mixer's tokens, as functions of Triton kernels: see ``aimamba.ops.mixer.step``.

Shape letters: see there; GROUP heads of a program, TOKENS of a block.
"""

from typing import no_type_check

import triton
import triton.language as tl

from aimamba.ops.ssd.triton.forward import INTERPRETED

# A token whose weight is below this share of the present token's is forgotten for good: float32 resolves 6e-8.
FORGOTTEN = tl.constexpr(1e-13)


@triton.jit
@no_type_check
def read_keys(B_row, slot, position, N: tl.constexpr):
    """Return B of some tokens, (TOKENS, N); zeros from ``position`` on."""
    return tl.load(B_row + slot[:, None] * N + tl.arange(0, N)[None, :], mask=(slot < position)[:, None], other=0.0)


@triton.jit
@no_type_check
def read_weights(weight_rows, slot, position):
    """Return the weights of some tokens, (TOKENS, GROUP); zeros from ``position`` on."""
    return tl.load(weight_rows[None, :] + slot[:, None], mask=(slot < position)[:, None], other=0.0)


@triton.jit
@no_type_check
def read_values(x_rows, slot, weights, P: tl.constexpr, VECTOR: tl.constexpr):
    """Return x of some tokens, (TOKENS, GROUP, P). Tokens that a head has forgotten, or not seen, are not read."""
    pointer = x_rows[None, :, None] + slot[:, None, None] * P + tl.arange(0, P)[None, None, :]
    # Nothing follows from this but how threads share the numbers: each takes VECTOR of a head at once, neighbouring
    # threads take neighbouring heads, and a thread takes several tokens. Triton 3.6 would do it the other way round,
    # and then threads exchange sums in the loop.
    pointer = tl.max_contiguous(pointer, (1, 2, VECTOR))
    return tl.load(pointer, mask=(weights > 0)[:, :, None], other=0.0, eviction_policy="evict_first")


@triton.jit
@no_type_check
def to_store(x, dt, P: tl.constexpr, GROUP: tl.constexpr, INT8: tl.constexpr):
    """Return the weights with which a token enters, (GROUP,), and what is stored of its x, (GROUP P,)."""
    if INT8:
        heads = tl.reshape(x, (GROUP, P))
        step = tl.max(tl.abs(heads), axis=1) / 127
        levels = tl.floor(heads / tl.where(step > 0, step, 1.0)[:, None] + 0.5)
        finite = tl.sum(heads * 0, axis=1) == 0
        fresh = dt * tl.where(finite, step, float("inf"))
        stored = tl.reshape(tl.where(finite[:, None], levels, 0.0), (GROUP * P,))
    else:
        fresh = dt
        stored = x
    return fresh, stored


@triton.jit
@no_type_check
def widen(values):
    """Convert to float32."""
    if values.dtype == tl.int8 and not INTERPRETED:
        # A processor converts few integers at a time. These operations put each byte, made unsigned, into the lowest
        # bits of 2^23 = 0x4B000000, and subtract 2^23 + 128.
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 bytes;
            xor.b32 bytes, $4, 0x80808080;
            prmt.b32 $0, bytes, 0x4B000000, 0x7440;
            prmt.b32 $1, bytes, 0x4B000000, 0x7441;
            prmt.b32 $2, bytes, 0x4B000000, 0x7442;
            prmt.b32 $3, bytes, 0x4B000000, 0x7443;
            add.f32 $0, $0, 0fCB000080;
            add.f32 $1, $1, 0fCB000080;
            add.f32 $2, $2, 0fCB000080;
            add.f32 $3, $3, 0fCB000080;
            }""",
            "=f,=f,=f,=f,r",
            [values],
            dtype=tl.float32,
            is_pure=True,
            pack=4,
        )
    return values.to(tl.float32)


@triton.jit
@no_type_check
def add_block(sums, keys, weights, values, weight_rows, slot, c, dt, fresh, A, ADD: tl.constexpr):
    """Let the weights of some tokens decay, store them, and add what the tokens contribute to y.

    ``fresh`` is the weight with which the present token enters.
    """
    weights_now = weights * tl.exp(dt * A)[None, :]
    weights_now = tl.where(weights_now < fresh[None, :] * FORGOTTEN, 0.0, weights_now)
    tl.store(weight_rows[None, :] + slot[:, None], weights_now, mask=weights > 0)
    similarity = tl.sum(keys.to(tl.float32) * c[None, :], axis=1)  # (TOKENS,)
    shares = (similarity[:, None] * weights_now)[:, :, None] * widen(values)
    if ADD:
        sums += tl.sum(shares, axis=0)[None, :, :]
    else:
        sums += shares
    return sums
