"""The end of one block and the start of the next, one token per row: gated residual, norm, modulation.

Shape letters: B rows, D width, G partial sums.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def modulated_norm_step(
    residual: Float[Tensor, "b d"],
    norm_weight: Float[Tensor, " d"],
    shift: Float[Tensor, "b d"],
    scale: Float[Tensor, "b d"],
    *,
    mixed: Float[Tensor, "b d"] | None = None,
    gate: Float[Tensor, "b d"] | None = None,
    squares: Float[Tensor, "b g"] | None = None,
    inner: int = 1,
    final_weight: Float[Tensor, " d"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "b d"]:
    """End one block and begin the next: ``residual += gate * mixed``, norm, ``* (1 + scale) + shift``.

    Args:
        residual: Float32 or wider. Updated.
        norm_weight: Scale of the next block's norm.
        shift: Of the next block; its dtype is that of the result.
        scale: Of the next block.
        mixed: What the block before gives; absent before the first block.
        gate: Of the block before; needed with ``mixed``.
        squares: From ``*_mixing_step``: ``mixed`` is then divided by the root of their sum over ``inner``.
        inner: Numbers that ``squares`` were summed over.
        final_weight: Scale of a second norm, right after the first: the end of the model has two.
        eps: Keeps the norms finite.

    Returns:
        Input of the next block.
    """
    if mixed is not None and gate is not None:
        added = gate.to(residual.dtype) * mixed.to(residual.dtype)
        if squares is not None:
            added = added * torch.rsqrt(squares.sum(dim=-1, keepdim=True) / inner + eps).to(added.dtype)
        residual.add_(added)
    hidden = residual
    for weight in (norm_weight, final_weight):
        if weight is not None:
            hidden = hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + eps) * weight
    return (hidden * (1 + scale.to(hidden.dtype)) + shift.to(hidden.dtype)).to(shift.dtype)
