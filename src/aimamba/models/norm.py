"""Root-mean-square normalisation as a module."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aimamba.ops.norm.rms import rms_norm


class RMSNorm(nn.Module):
    """RMSNorm with a learned scale (Zhang and Sennrich, arXiv 1910.07467)."""

    WIDE: ClassVar[frozenset[str]] = frozenset({"weight"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Normalise the last axis; the result has the dtype of ``x``."""
        return rms_norm(x, self.weight)
