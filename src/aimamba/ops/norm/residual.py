"""The norm between two blocks, for one token a row: add the gated output of a block, normalise, modulate.

Shape letters: B rows, D width, G partial sums, S parts of a product.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def residual_norm_step(
    residual: Float[Tensor, "b d"],
    norm_weight: Float[Tensor, " d"],
    shift: Float[Tensor, "b d"],
    scale: Float[Tensor, "b d"],
    *,
    mixed: Float[Tensor, "*s b d"] | None = None,
    gate: Float[Tensor, "b d"] | None = None,
    squares: Float[Tensor, "b g"] | None = None,
    inner: int = 1,
    final_weight: Float[Tensor, " d"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "b d"]:
    """Compute ``residual += gate * mixed``, then ``norm(residual) * (1 + scale) + shift``.

    Args:
        residual: Float32 or wider. Updated in place.
        norm_weight: Scale of the next block's norm.
        shift: Shift of the next block; the result has its dtype.
        scale: Scale of the next block.
        mixed: Output of the previous block, or parts whose sum it is (``split_linear``); None before the first block.
        gate: Gate of the previous block; needed with ``mixed``.
        squares: Partial sums of squares from ``state_mixer_step`` or ``dual_mixer_step``; with them ``mixed`` is
            divided by the root of their sum over ``inner``.
        inner: Count of the numbers whose squares were summed.
        final_weight: Scale of a second norm right after the first, which the end of the model has.
        eps: Added to mean squares before the root.

    Returns:
        Input of the next block.
    """
    if mixed is not None and gate is not None:
        whole = mixed.to(residual.dtype)
        added = gate.to(residual.dtype) * (whole if whole.ndim == residual.ndim else whole.sum(dim=0))
        if squares is not None:
            added = added * torch.rsqrt(squares.sum(dim=-1, keepdim=True) / inner + eps).to(added.dtype)
        residual.add_(added)
    hidden = residual
    for weight in (norm_weight, final_weight):
        if weight is not None:
            hidden = hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + eps) * weight
    return (hidden * (1 + scale.to(hidden.dtype)) + shift.to(hidden.dtype)).to(shift.dtype)
