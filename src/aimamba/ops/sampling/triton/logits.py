"""From logits to codes as one kernel: guidance, temperature, top-k and the draw. See ``aimamba.ops.sampling.logits``.

A program takes one image and holds all its logits in registers. Shape letters: R rows of logits, B images,
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


@triton.jit
@no_type_check
def _kth_largest(x, k, inside):
    """The k-th largest number, bit by bit: of the thresholds that at least k reach, the highest."""
    bits = x.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # whole numbers in the order of the floats
    ordered = tl.where(inside, ordered, -2147483648)
    threshold = tl.full((), -2147483648, tl.int64)
    for bit in tl.static_range(32):
        higher = threshold + (1 << (31 - bit))
        reached = tl.sum((ordered.to(tl.int64) >= higher).to(tl.int32), axis=0)
        threshold = tl.where(reached >= k, higher, threshold)
    return ordered.to(tl.int64) >= threshold


@triton.jit
@no_type_check
def _kernel(
    logits, twins, scales, uniforms, temperatures, temperature, ks, k, codes,
    V: tl.constexpr, BLOCK: tl.constexpr, GUIDED: tl.constexpr, TEMPERATURES: tl.constexpr, KS: tl.constexpr,
    TOP_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    code = tl.arange(0, BLOCK)
    inside = code < V
    x = tl.load(logits + row * V + code, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        twin = tl.load(twins + row)
        null_class = tl.load(logits + twin * V + code, mask=inside, other=0.0).to(tl.float32)
        x = null_class + (x - null_class) * tl.load(scales + row).to(tl.float32)
    if TEMPERATURES:
        temperature = tl.load(temperatures + row).to(tl.float32)
    if KS:
        k = tl.load(ks + row).to(tl.int32)
    x = tl.where(inside, x, -float("inf"))
    likeliest = tl.argmax(x, axis=0)
    x = x / tl.where(temperature == 0, 1.0, temperature)
    kept = inside
    if TOP_K:
        kept = inside & (_kth_largest(x, k, inside) | (k <= 0))
    weight = tl.where(kept, tl.exp(x - tl.max(x, axis=0)), 0.0).to(tl.float64)
    below = tl.cumsum(weight, axis=0)
    target = tl.load(uniforms + row) * tl.sum(weight, axis=0)
    drawn = tl.sum((inside & (below <= target)).to(tl.int32), axis=0)
    last = tl.max(tl.where(weight > 0, code, 0), axis=0)
    tl.store(codes + row, tl.where(temperature == 0, likeliest, tl.minimum(drawn, last)).to(tl.int64))


def guided_sample(
    logits: Float[Tensor, "r v"],
    uniform: Float[Tensor, " b"],
    *,
    twins: Int[Tensor, " b"] | None = None,
    scale: Float[Tensor, " b"] | None = None,
    temperature: Setting = 1.0,
    top_k: Setting = 0,
    top_p: Setting = 1.0,
) -> Int[Tensor, " b"]:
    """See ``aimamba.ops.sampling.logits.guided_sample``. Top-p, which has to sort, and huge vocabularies go there."""
    vocabulary = logits.shape[1]
    whole = isinstance(top_p, int | float) and top_p >= 1
    if not whole or vocabulary > LARGEST_VOCABULARY or logits.dtype == torch.float64:
        return plain.guided_sample(
            logits, uniform, twins=twins, scale=scale, temperature=temperature, top_k=top_k, top_p=top_p
        )
    codes = torch.empty(uniform.shape[0], dtype=torch.long, device=logits.device)
    # Numbers are handed to the kernel, tensors are read by it; what is not asked for is not read.
    temperatures = temperature if isinstance(temperature, Tensor) else None
    ks = top_k if isinstance(top_k, Tensor) else None
    _kernel[(len(codes),)](
        logits.contiguous(),
        uniform if twins is None else twins,
        uniform if scale is None else scale,
        uniform,
        uniform if temperatures is None else temperatures,
        1.0 if isinstance(temperature, Tensor) else float(temperature),
        uniform if ks is None else ks,
        0 if isinstance(top_k, Tensor) else min(int(top_k), vocabulary),
        codes,
        vocabulary, triton.next_power_of_2(vocabulary),
        twins is not None, temperatures is not None, ks is not None, ks is not None or int(top_k) > 0,
        num_warps=_WARPS,
    )  # fmt: skip
    return codes
