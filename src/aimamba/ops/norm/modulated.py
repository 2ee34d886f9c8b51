"""What happens between two blocks, for all tokens: add the gated output of one, normalise, modulate for the next.

After the last block it is the same, with one more norm.

Shape letters: B batch, L tokens, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.ops import triton as kernels
from aimamba.ops.norm.rms import modulated_rms_norm, rms_norm

EPS = 1e-5


def residual_modulated_norm(
    residual: Float[Tensor, "b l d"],
    mixed: Float[Tensor, "b l d"] | None,
    gate: Float[Tensor, "b d"] | None,
    weight: Float[Tensor, " d"],
    scale: Float[Tensor, "b d"],
    shift: Float[Tensor, "b d"],
    before: Float[Tensor, " d"] | None = None,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
    """Add ``gate * mixed`` to the residual, then compute ``rms_norm(residual, weight) * (1 + scale) + shift``.

    On a CUDA device this is one Triton kernel, where Triton is installed. Differentiable once.

    Args:
        residual: Float32 or wider.
        mixed: Output of the block before; None before the first block.
        gate: Gate of the block before; given with ``mixed``.
        weight: Scale of the norm.
        scale: Scale of the modulation.
        shift: Shift of the modulation; its dtype is that of the second result.
        before: Scale of a norm whose result is normalised in place of the residual; None for no such norm.

    Returns:
        The new residual, and the input of the next block's mixer.
    """
    if kernels_apply(residual, weight, weight if before is None else before):
        from aimamba.ops.norm.triton import modulated as fused  # noqa: PLC0415 - imports Triton

        # A matrix product follows, which would narrow the result under autocast.
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else shift.dtype
        return fused.residual_modulated_norm(residual, mixed, gate, weight, scale, shift, before, dtype=dtype, eps=EPS)
    if mixed is not None and gate is not None:
        residual = residual + gate[:, None] * mixed
    normal = residual if before is None else rms_norm(residual, before, eps=EPS)
    return residual, modulated_rms_norm(normal, weight, scale, shift, eps=EPS)


def kernels_apply(residual: Tensor, *weights: Tensor) -> bool:
    """Return whether Triton kernels can take a residual and the weights of its norms."""
    wide = all(tensor.dtype == torch.float32 for tensor in (residual, *weights))
    return wide and residual.is_cuda and residual.numel() > 0 and kernels.unsupported() is None
