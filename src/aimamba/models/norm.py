"""Root-mean-square normalisation as a module."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aimamba.ops.norm import gated_rms_norm_efficient, rms_norm


class RMSNorm(nn.Module):
    """RMSNorm with a learned scale; given a gate it normalises ``x * silu(gate)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*b d"], gate: Float[Tensor, "*b d"] | None = None) -> Float[Tensor, "*b d"]:
        """Normalise over the last axis; the result has the dtype of ``x``."""
        return rms_norm(x, self.weight) if gate is None else gated_rms_norm_efficient(x, gate, self.weight)
