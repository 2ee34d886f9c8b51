"""The gated norm of a mixer for all tokens, forward and backward: see ``aimamba.ops.norm.rms.gated_rms_norm``.

A program handles some tokens, one after the other; the backward kernel adds up their shares of the gradient of the
scale. The gate is read from, and its gradient written to, the first features of the input projection's output.

Shape letters: M tokens, E inner width, Z projected features.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.norm.triton.sequence import Launch
from aimamba.ops.triton.functions import sigmoid, silu

FORWARD = Launch(tokens=1, numbers=16, stages=1)  # these two as measured on an H200, see docs/log.md
BACKWARD = Launch(tokens=16, numbers=16, stages=3, registers=128)


@triton.jit
@no_type_check
def _gated_norm_kernel(
    y, projected, weight, out, inverses, eps, M,
    Z: tl.constexpr, E: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, WIDE)
    inside = column < E
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    first = tl.program_id(0).to(tl.int64) * TOKENS
    for token in tl.range(tl.minimum(TOKENS, M - first), num_stages=STAGES):
        place = first + token
        z = tl.load(projected + place * Z + column, mask=inside, other=0.0).to(tl.float32)
        gated = tl.load(y + place * E + column, mask=inside, other=0.0).to(tl.float32) * silu(z)
        inverse = tl.rsqrt(tl.sum(gated * gated, axis=0) / E + eps)
        tl.store(out + place * E + column, (gated * inverse * scale).to(out.dtype.element_ty), mask=inside)
        tl.store(inverses + place, inverse)


@triton.jit
@no_type_check
def _gated_norm_backward_kernel(
    dout, y, projected, weight, inverses, dy, dprojected, sums, M,
    Z: tl.constexpr, E: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, WIDE)
    inside = column < E
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((WIDE,), dtype=tl.float32)
    first = tl.program_id(0).to(tl.int64) * TOKENS
    for token in tl.range(tl.minimum(TOKENS, M - first), num_stages=STAGES):
        place = first + token
        z = tl.load(projected + place * Z + column, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(y + place * E + column, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dout + place * E + column, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(inverses + place)
        opening = sigmoid(z)
        gate = z * opening
        normal = value * inverse * gate
        total += gradient * normal
        dnormal = gradient * scale
        mean = tl.sum(dnormal * normal, axis=0) / E
        dgated = (dnormal - normal * mean) * inverse
        tl.store(dy + place * E + column, (dgated * gate).to(dy.dtype.element_ty), mask=inside)
        dz = dgated * value * (opening + gate * (1 - opening))
        tl.store(dprojected + place * Z + column, dz.to(dprojected.dtype.element_ty), mask=inside)
    tl.store(sums + tl.program_id(0).to(tl.int64) * E + column, total, mask=inside)


def gated_rms_norm(
    y: Float[Tensor, "b l e"],
    projected: Float[Tensor, "b l z"],
    weight: Float[Tensor, " e"],
    *,
    eps: float,
    launch: Launch = FORWARD,
) -> tuple[Float[Tensor, "b l e"], Float[Tensor, "b l"]]:
    """Compute ``rms_norm(y * silu(z), weight)``, where z are the first E features of ``projected``.

    Takes contiguous tensors.

    Returns:
        The result in the dtype of ``y``, and one over the root mean squares in float32.
    """
    batch, length, inner = y.shape
    out, inverses = torch.empty_like(y), torch.empty(batch, length, dtype=torch.float32, device=y.device)
    wide = triton.next_power_of_2(inner)
    _gated_norm_kernel[(triton.cdiv(batch * length, launch.tokens),)](
        y, projected, weight, out, inverses, eps, batch * length,
        projected.shape[2], inner, wide, launch.tokens, launch.stages, **launch.options(wide),
    )  # fmt: skip
    return out, inverses


def gated_rms_norm_backward(
    dout: Float[Tensor, "b l e"],
    y: Float[Tensor, "b l e"],
    projected: Float[Tensor, "b l z"],
    weight: Float[Tensor, " e"],
    inverses: Float[Tensor, "b l"],
    dprojected: Float[Tensor, "b l z"],
    *,
    launch: Launch = BACKWARD,
) -> tuple[Float[Tensor, "b l e"], Float[Tensor, " e"]]:
    """Write the gradient of z into ``dprojected``.

    Returns:
        The gradients of ``y``, in its dtype, and of ``weight``, in float32.
    """
    batch, length, inner = y.shape
    programs, wide = triton.cdiv(batch * length, launch.tokens), triton.next_power_of_2(inner)
    dy, sums = torch.empty_like(y), torch.empty(programs, inner, dtype=torch.float32, device=y.device)
    _gated_norm_backward_kernel[(programs,)](
        dout, y, projected, weight, inverses, dy, dprojected, sums, batch * length,
        projected.shape[2], inner, wide, launch.tokens, launch.stages, **launch.options(wide),
    )  # fmt: skip
    return dy, sums.sum(dim=0)
