"""Guidance, temperature, top-k, min-p and sampling as one Triton kernel: see ``aimamba.ops.sampling.logits``.

A program handles one image and holds all its logits in registers. Shape letters: R rows of logits, B images,
V vocabulary.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.ops.sampling import logits as plain
from aimamba.ops.sampling.logits import Setting

LARGEST_VOCABULARY = 32768
_WARPS = 16
_SPAN = 128  # tokens


@triton.jit
@no_type_check
def _kth_largest(x, k, inside):
    """Return which numbers are at least the k-th largest, whose bits are found from the highest to the lowest."""
    bits = x.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats
    ordered = tl.where(inside, ordered, -2147483648)
    threshold = tl.full((), -2147483648, tl.int32)
    for bit in tl.static_range(32):
        higher = threshold ^ (-2147483648 if bit == 0 else 1 << (31 - bit))  # the sign first: then 0, else bits are set
        reached = tl.sum((ordered >= higher).to(tl.int32), axis=0)
        threshold = tl.where(reached >= k, higher, threshold)
    return ordered >= threshold


@triton.jit
@no_type_check
def _find(weight, target, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """Return the first token at which the sum of all weights up to it exceeds ``target``, or one behind the last.

    Sums are float64: first those of spans of tokens, then those of the tokens in one span, so that a thread never holds
    all its sums at once.
    """
    spans: tl.constexpr = BLOCK // SPAN
    weights = tl.reshape(weight, (spans, SPAN))
    span = tl.arange(0, spans)
    ends = tl.cumsum(tl.sum(weights.to(tl.float64), axis=1), axis=0)
    chosen = tl.sum((ends <= target).to(tl.int32), axis=0)
    start = tl.max(tl.where(ends <= target, ends, 0.0), axis=0)
    within = tl.sum(tl.where((span == chosen)[:, None], weights, 0.0), axis=0)
    reached = start + tl.cumsum(within.to(tl.float64), axis=0)
    place = tl.sum((reached <= target).to(tl.int32), axis=0)
    last = tl.max(tl.where(within > 0, tl.arange(0, SPAN), 0), axis=0)  # the two sums of a span may round differently
    return chosen * SPAN + tl.minimum(place, last)


@triton.jit
@no_type_check
def _guided_sample_kernel(
    logits, unconditional_rows, scales, uniforms, temperatures, temperature, ks, k, min_ps, min_p, tokens,
    V: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr, GUIDED: tl.constexpr, TEMPERATURES: tl.constexpr,
    KS: tl.constexpr, TOP_K: tl.constexpr, MIN_PS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < V
    x = tl.load(logits + row * V + token, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        other_row = tl.load(unconditional_rows + row)
        unconditional = tl.load(logits + other_row * V + token, mask=inside, other=0.0).to(tl.float32)
        x = unconditional + (x - unconditional) * tl.load(scales + row).to(tl.float32)
    if TEMPERATURES:
        temperature = tl.load(temperatures + row).to(tl.float32)
    if KS:
        k = tl.load(ks + row).to(tl.int32)
    if MIN_PS:
        min_p = tl.load(min_ps + row).to(tl.float32)
    x = tl.where(inside, x, -float("inf"))
    likeliest = tl.argmax(x, axis=0)
    x = x / tl.where(temperature == 0, 1.0, temperature)
    kept = inside
    if TOP_K:
        kept = inside & (_kth_largest(x, k, inside) | (k <= 0))
    weight = tl.exp(x - tl.max(x, axis=0))
    weight = tl.where(kept & (weight >= min_p), weight, 0.0)
    target = tl.load(uniforms + row) * tl.sum(weight.to(tl.float64), axis=0)
    sampled = _find(weight, target, SPAN, BLOCK)
    last = tl.max(tl.where(weight > 0, token, 0), axis=0)
    tl.store(tokens + row, tl.where(temperature == 0, likeliest, tl.minimum(sampled, last)).to(tl.int64))


def guided_sample(
    logits: Float[Tensor, "r v"],
    uniform: Float[Tensor, " b"],
    *,
    unconditional_rows: Int[Tensor, " b"] | None = None,
    scale: Float[Tensor, " b"] | None = None,
    temperature: Setting = 1.0,
    top_k: Setting = 0,
    top_p: Setting = 1.0,
    min_p: Setting = 0.0,
) -> Int[Tensor, " b"]:
    """Compute ``aimamba.ops.sampling.logits.guided_sample``.

    The plain function handles top-p, which has to sort, float64, and vocabularies above ``LARGEST_VOCABULARY``.
    """
    vocabulary = logits.shape[1]
    without_top_p = isinstance(top_p, int | float) and top_p >= 1
    if not without_top_p or vocabulary > LARGEST_VOCABULARY or logits.dtype == torch.float64:
        return plain.guided_sample(
            logits, uniform, unconditional_rows=unconditional_rows, scale=scale,
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        )  # fmt: skip
    block = triton.next_power_of_2(vocabulary)
    tokens = torch.empty(uniform.shape[0], dtype=torch.long, device=logits.device)
    # Numbers are passed to the kernel by value, tensors as pointers; any pointer will do for what is not read.
    temperatures = temperature if isinstance(temperature, Tensor) else None
    ks = top_k if isinstance(top_k, Tensor) else None
    min_ps = min_p if isinstance(min_p, Tensor) else None
    with torch.cuda.device_of(logits):  # engines step on the model's device, and this comes after the step
        _guided_sample_kernel[(len(tokens),)](
            logits.contiguous(),
            uniform if unconditional_rows is None else unconditional_rows,
            uniform if scale is None else scale,
            uniform,
            uniform if temperatures is None else temperatures,
            1.0 if isinstance(temperature, Tensor) else float(temperature),
            uniform if ks is None else ks,
            0 if isinstance(top_k, Tensor) else min(int(top_k), vocabulary),
            uniform if min_ps is None else min_ps,
            0.0 if isinstance(min_p, Tensor) else float(min_p),
            tokens,
            vocabulary, block, min(block, _SPAN),
            unconditional_rows is not None, temperatures is not None, ks is not None, ks is not None or int(top_k) > 0,
            min_ps is not None,
            num_warps=_WARPS,
        )  # fmt: skip
    return tokens
