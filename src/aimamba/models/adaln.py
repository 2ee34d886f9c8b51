"""Adaptive layer norm: how the condition reaches every block (AiM, arXiv 2408.12245, eqs. 5-9).

Each variant turns a condition (B, D) into a shift, a scale and a gate for every block, (B, blocks, 3, D):

* ``none``    shift 0, scale 0, gate 1: only the class token and the final norm depend on the class
* ``block``   every block has its own projection (adaLN-Zero: initialised to 0, so each block starts as the identity)
* ``group``   blocks share ``G`` projections, block i uses number i mod G, and each block adds its own table
* ``single``  ``group`` with one projection

A block computes ``gate * mixer(norm(x) * (1 + scale) + shift)``; the paper writes ``gate * mixer(scale x + shift)``.

Shape letters: B batch, D width, G groups.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

AdaLNKind = Literal["none", "block", "single", "group"]

ROLES = 3  # shift, scale, gate


class NoAdaLN(nn.Module):
    """Shift 0, scale 0 and gate 1 for every condition."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Do nothing: there are no parameters."""

    def forward(self, condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n 3 d"]:
        """Return modulations that leave the norm as it is."""
        batch, width = condition.shape
        gates = torch.arange(ROLES, device=condition.device) == ROLES - 1  # made there: a copy would be waited for
        return gates.to(condition.dtype)[:, None].expand(batch, self.blocks, ROLES, width)


class BlockAdaLN(nn.Module):
    """One projection for each block."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(width, ROLES * width) for _ in range(blocks))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill with zeros (adaLN-Zero, Peebles and Xie, arXiv 2212.09748)."""
        for parameter in self.parameters():
            parameter.zero_()

    def forward(self, condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n 3 d"]:
        """Project the condition once for each block."""
        active = F.silu(condition)
        projected = torch.stack([projection(active) for projection in self.projections], dim=1)
        return projected.unflatten(-1, (ROLES, -1))


class GroupAdaLN(nn.Module):
    """``groups`` projections that the blocks use in turn, and a table of offsets for each block."""

    def __init__(self, width: int, blocks: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.projection = nn.Linear(width, groups * ROLES * width)
        self.table = nn.Parameter(torch.empty(blocks, ROLES, width))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill the projection uniformly within +- 1 / sqrt(D), its bias with 0, and the table from N(0, 1 / D)."""
        bound = self.projection.in_features**-0.5
        self.projection.weight.uniform_(-bound, bound, generator=generator)
        self.projection.bias.zero_()
        self.table.normal_(generator=generator).mul_(bound)

    def forward(self, condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n 3 d"]:
        """Project the condition once for each group and add each block's table to its group's result."""
        shared = self.projection(F.silu(condition)).unflatten(-1, (self.groups, ROLES, -1))  # (B, G, 3, D)
        group_of_block = torch.arange(self.table.shape[0], device=shared.device) % self.groups
        return shared[:, group_of_block] + self.table


def make_adaln(kind: AdaLNKind, *, width: int, blocks: int, groups: int) -> NoAdaLN | BlockAdaLN | GroupAdaLN:
    """Build the variant ``kind`` for ``blocks`` blocks; only ``group`` uses ``groups``."""
    if kind == "none":
        return NoAdaLN(blocks)
    if kind == "block":
        return BlockAdaLN(width, blocks)
    return GroupAdaLN(width, blocks, 1 if kind == "single" else groups)
