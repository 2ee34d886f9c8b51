"""Root-mean-square normalisation (Zhang and Sennrich, arXiv 1910.07467), plain and gated."""

import torch
from jaxtyping import Float
from torch import Tensor


def rms_norm(x: Float[Tensor, "*b d"], weight: Float[Tensor, " d"], *, eps: float = 1e-5) -> Float[Tensor, "*b d"]:
    """Scale ``x`` to unit root mean square, then by ``weight``; computed in float32 or better, returned as given."""
    wide = x if x.dtype == torch.float64 else x.float()
    y = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (y * weight).to(x.dtype)


def gated_rms_norm(
    x: Float[Tensor, "*b d"], gate: Float[Tensor, "*b d"], weight: Float[Tensor, " d"], *, eps: float = 1e-5
) -> Float[Tensor, "*b d"]:
    """Normalise ``x * silu(gate)``: Mamba-2 gates before it normalises."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return rms_norm(x.to(wide) * torch.nn.functional.silu(gate.to(wide)), weight, eps=eps).to(x.dtype)
