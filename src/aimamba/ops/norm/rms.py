"""Root-mean-square normalisation (Zhang and Sennrich, arXiv 1910.07467): plain, gated and modulated.

The norms keep up to 16 constant tensors of one number between calls, because creating one would take a decoding step as
long as computing with it.
"""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Float[Tensor, "*b d"], weight: Float[Tensor, " d"], *, eps: float = 1e-5) -> Float[Tensor, "*b d"]:
    """Scale ``x`` to unit root mean square, then by ``weight``. Computed in float32 or better; ``x`` sets the dtype."""
    wide = x if x.dtype == torch.float64 else x.float()
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(wide, weight.shape, weight, eps).to(x.dtype)
    return (wide * _inverse_root_mean_square(wide, eps) * weight).to(x.dtype)


def gated_rms_norm(
    x: Float[Tensor, "*b d"], gate: Float[Tensor, "*b d"], weight: Float[Tensor, " d"], *, eps: float = 1e-5
) -> Float[Tensor, "*b d"]:
    """Compute ``rms_norm(x * silu(gate), weight)``: Mamba-2 gates before it normalises."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return rms_norm(x.to(wide) * F.silu(gate.to(wide)), weight, eps=eps).to(x.dtype)


def modulated_rms_norm(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, " d"],
    scale: Float[Tensor, "b d"],
    shift: Float[Tensor, "b d"],
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "b l d"]:
    """Compute ``rms_norm(x, weight) * (1 + scale) + shift`` in the dtype of ``scale``; differentiable once."""
    if torch.compiler.is_compiling():  # the compiler fuses the plain operations itself
        return (rms_norm(x, weight, eps=eps).to(scale.dtype) * (1 + scale[:, None]) + shift[:, None]).to(scale.dtype)
    return _ModulatedRMSNorm.apply(x, weight, scale, shift, eps)  # type: ignore[no-untyped-call]


def modulated_rms_norm_step(
    x: Float[Tensor, "b d"],
    weight: Float[Tensor, " d"],
    scale: Float[Tensor, "b d"],
    shift: Float[Tensor, "b d"],
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "b d"]:
    """Compute ``modulated_rms_norm`` for one token a row, in few operations; all tensors have the dtype of ``x``."""
    factor = torch.addcmul(weight, weight, scale)
    return torch.addcmul(shift, x / _padded_length(x, eps), factor, value=x.shape[-1] ** 0.5)


def gated_rms_norm_efficient(
    x: Float[Tensor, "*b d"], gate: Float[Tensor, "*b d"], weight: Float[Tensor, " d"], *, eps: float = 1e-5
) -> Float[Tensor, "*b d"]:
    """Compute ``gated_rms_norm``, keeping only its inputs for the backward pass; differentiable once."""
    if torch.compiler.is_compiling():
        return gated_rms_norm(x, gate, weight, eps=eps)
    return _GatedRMSNorm.apply(x, gate, weight, eps)  # type: ignore[no-untyped-call]


def _padded_length(x: Tensor, eps: float) -> Tensor:
    """Return ``sqrt(D (mean(x^2) + eps))`` of every row, in few operations: their number bounds a decoding step."""
    pad = _scalar((x.shape[-1] * eps) ** 0.5, x.dtype, x.device)
    return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), pad)


@lru_cache(maxsize=16)
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # a normal tensor, which later calls can use in every mode
        return torch.full((), value, dtype=dtype, device=device)


def _inverse_root_mean_square(x: Tensor, eps: float) -> Tensor:
    return x.shape[-1] ** 0.5 / _padded_length(x, eps)


class _ModulatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        x = x.to(wide)
        inverse = _inverse_root_mean_square(x, eps)  # (B, L, 1)
        ctx.save_for_backward(x, inverse, weight, scale)
        factor = weight * (1 + scale.to(wide)[:, None])  # (B, 1, D)
        return torch.addcmul(shift.to(wide)[:, None], x * inverse, factor).to(scale.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, inverse, weight, scale = ctx.saved_tensors
        dy = dy.to(x.dtype)
        normal = x * inverse
        product = (dy * normal).sum(dim=1)  # (B, D): the gradient of the factor
        factor = 1 + scale.to(x.dtype)
        dnormal = dy * (weight * factor)[:, None]
        inner = (dnormal * normal).mean(dim=-1, keepdim=True)
        dx = torch.addcmul(dnormal, normal, inner, value=-1).mul_(inverse)
        dweight = (product * factor).sum(dim=0)
        return dx, dweight, (product * weight).to(scale.dtype), dy.sum(dim=1).to(scale.dtype), None


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        gated = F.silu(gate.to(wide)).mul_(x.to(wide))
        inverse = _inverse_root_mean_square(gated, eps)
        ctx.save_for_backward(x, gate, weight, inverse)
        return gated.mul_(inverse).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate, weight, inverse = ctx.saved_tensors
        gate_dtype, wide = gate.dtype, inverse.dtype
        gate, wide_x = gate.to(wide), x.to(wide)
        opening = F.silu(gate)
        normal = (opening * wide_x).mul_(inverse)
        dnormal = dy.to(wide) * weight
        inner = (dnormal * normal).mean(dim=-1, keepdim=True)
        dweight = (dy.to(wide) * normal).flatten(0, -2).sum(dim=0)
        dgated = dnormal.addcmul_(normal, inner, value=-1).mul_(inverse)
        dgate = torch.ops.aten.silu_backward(dgated * wide_x, gate)
        return dgated.mul_(opening).to(x.dtype), dgate.to(gate_dtype), dweight.to(weight.dtype), None
