"""Adaptive layer norm: how the condition reaches every block (AiM, arXiv 2408.12245, eqs. 5-9).

Each variant turns a condition (B, D) into a shift, a scale and a gate for every block, (B, blocks, 3, D):

* ``none``    shift 0, scale 0, gate 1: the class token and the final norm alone tell the class
* ``block``   every block has its own projection (plain adaLN, zero at the start so that every block begins silent)
* ``group``   blocks share ``G`` projections, block i using the i mod G-th, and each adds its own table
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
    """The same shift 0, scale 0 and gate 1 whatever the condition."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Nothing to fill."""

    def forward(self, condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n 3 d"]:
        """Modulations that change nothing."""
        batch, width = condition.shape
        idle = torch.tensor([0.0, 0.0, 1.0], dtype=condition.dtype, device=condition.device)
        return idle[:, None].expand(batch, self.blocks, ROLES, width)


class BlockAdaLN(nn.Module):
    """A projection for every block."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(width, ROLES * width) for _ in range(blocks))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Zero everywhere (adaLN-Zero, Peebles and Xie, arXiv 2212.09748)."""
        for parameter in self.parameters():
            parameter.zero_()

    def forward(self, condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n 3 d"]:
        """Project the condition once for every block."""
        active = F.silu(condition)
        projected = torch.stack([projection(active) for projection in self.projections], dim=1)
        return projected.unflatten(-1, (ROLES, -1))


class GroupAdaLN(nn.Module):
    """``groups`` projections shared by the blocks in turn, and a table of offsets for every block."""

    def __init__(self, width: int, blocks: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.projection = nn.Linear(width, groups * ROLES * width)
        self.table = nn.Parameter(torch.empty(blocks, ROLES, width))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Projection uniform +- 1 / sqrt(D) with bias 0; table normal with deviation 1 / sqrt(D)."""
        bound = self.projection.in_features**-0.5
        self.projection.weight.uniform_(-bound, bound, generator=generator)
        self.projection.bias.zero_()
        self.table.normal_(generator=generator).mul_(bound)

    def forward(self, condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n 3 d"]:
        """Project the condition once for every group, hand the results round the blocks, add each block's table."""
        shared = self.projection(F.silu(condition)).unflatten(-1, (self.groups, ROLES, -1))  # (B, G, 3, D)
        group_of_block = torch.arange(self.table.shape[0], device=shared.device) % self.groups
        return shared[:, group_of_block] + self.table


def make_adaln(kind: AdaLNKind, *, width: int, blocks: int, groups: int) -> NoAdaLN | BlockAdaLN | GroupAdaLN:
    """Build the variant ``kind`` for ``blocks`` blocks; ``groups`` matters to ``group`` alone."""
    if kind == "none":
        return NoAdaLN(blocks)
    if kind == "block":
        return BlockAdaLN(width, blocks)
    return GroupAdaLN(width, blocks, 1 if kind == "single" else groups)
