"""What follows the last block, for all tokens: add its gated output, normalise twice, modulate.

Shape letters: B batch, L tokens, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.norm.modulated import EPS, kernels_apply
from aimamba.ops.norm.rms import modulated_rms_norm, rms_norm


def final_norm(
    residual: Float[Tensor, "b l d"],
    mixed: Float[Tensor, "b l d"],
    gate: Float[Tensor, "b d"],
    norm_weight: Float[Tensor, " d"],
    final_weight: Float[Tensor, " d"],
    scale: Float[Tensor, "b d"],
    shift: Float[Tensor, "b d"],
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
    """Add ``gate * mixed`` to the residual, then compute ``rms_norm(rms_norm(residual)) * (1 + scale) + shift``.

    On a CUDA device this is one Triton kernel, where Triton is installed. Differentiable once.

    Args:
        residual: Float32 or wider.
        mixed: Output of the last block.
        gate: Its gate.
        norm_weight: Scale of the first norm.
        final_weight: Scale of the second norm.
        scale: Scale of the modulation.
        shift: Shift of the modulation; its dtype is that of the second result.

    Returns:
        The new residual, and the input of the head.
    """
    if kernels_apply(residual, norm_weight, final_weight) and not torch.compiler.is_compiling():
        from aimamba.ops.norm.triton import final as fused  # noqa: PLC0415 - imports Triton

        # A matrix product follows, which would narrow the result under autocast.
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else shift.dtype
        return fused.final_norm(residual, mixed, gate, norm_weight, final_weight, scale, shift, dtype=dtype, eps=EPS)
    residual = residual + gate[:, None] * mixed
    return residual, modulated_rms_norm(rms_norm(residual, norm_weight, eps=EPS), final_weight, scale, shift, eps=EPS)
