"""The Transformer baseline's mixers, behind the interface of ``Mamba2``: causal self-attention and a SwiGLU layer.

Shape letters: B batch, L tokens, D width, H heads, P head width, T longest sequence.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.models.initial import fill_uniform
from aimamba.models.state import MixerState
from aimamba.ops.cache import Position, seen, write
from aimamba.ops.linear.linear import linear

_ROTARY_BASE = 10_000.0


def rotary_2d(
    x: Float[Tensor, "b l h p"], position: Int[Tensor, "b l"], *, grid_width: int
) -> Float[Tensor, "b l h p"]:
    """Rotate queries or keys by their place in the code grid (axial RoPE, after Su et al., arXiv 2104.09864).

    The first half of the head is rotated by the row of code ``position - 1``, the second half by its column.
    Position 0, the class token, lies outside the grid and is not rotated (as in LlamaGen).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    quarter = x.shape[-1] // 4
    code = (position - 1).clamp(min=0)
    place = torch.stack([code // grid_width, code % grid_width], dim=-1) + 1  # (B, L, 2), counted from 1
    place = torch.where(position[..., None] == 0, 0, place)
    frequency = _ROTARY_BASE ** (-torch.arange(quarter, device=x.device, dtype=wide) / quarter)
    angle = (place[..., None] * frequency).flatten(-2)[:, :, None]  # (B, L, 1, P / 2)
    even, odd = x.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention with a cache of keys and values."""

    def __init__(self, width: int, *, head_width: int, rotary: bool, grid_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.rotary = rotary
        self.grid_width = grid_width
        self.in_proj = nn.Linear(width, 3 * width, bias=False)  # q, k, v
        self.out_proj = nn.Linear(width, width, bias=False)

    @torch.no_grad()
    def init_weights(self, *, residual_scale: float, generator: torch.Generator | None = None) -> None:
        """Fill uniformly within +- 1 / sqrt(fan in); the output projection is also scaled by ``residual_scale``."""
        fill_uniform(self.in_proj.weight, generator)
        fill_uniform(self.out_proj.weight, generator, scale=residual_scale)

    def _split(self, projected: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the input projection (B, L, 3 D) into queries, keys and values, each (B, L, H, P)."""
        q, k, v = (part.unflatten(-1, (-1, self.head_width)) for part in projected.chunk(3, dim=-1))
        if self.rotary:
            q, k = (rotary_2d(part, position, grid_width=self.grid_width) for part in (q, k))
        return q, k, v

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix all tokens in parallel."""
        position = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        q, k, v = (part.transpose(1, 2) for part in self._split(self.in_proj(x), position))  # (B, H, L, P)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).flatten(-2))

    def init_state(self, batch: int, length: int) -> MixerState:
        """Return an empty cache for ``batch`` rows of at most ``length`` tokens."""
        weight = self.in_proj.weight
        shape = (batch, weight.shape[1] // self.head_width, length, self.head_width)
        return {"keys": weight.new_zeros(shape), "values": weight.new_zeros(shape)}

    def step(self, x: Float[Tensor, "b d"], state: MixerState, position: Position) -> Float[Tensor, "b d"]:
        """Mix one token of each row, at its own ``position``, with those before it, and update ``state``."""
        return self.step_among(x, state, position, seen(position))

    def step_among(
        self, x: Float[Tensor, "b d"], state: MixerState, position: Position, places: int
    ) -> Float[Tensor, "b d"]:
        """Take a step that reads the first ``places`` entries of the cache and never waits for the device.

        Any number of places above the highest position gives the same result.
        """
        if isinstance(position, int):
            each, places, visible = torch.full((len(x),), position, device=x.device), position + 1, None
        else:
            each = position
            visible = (torch.arange(places, device=x.device) <= position[:, None])[:, None, None]  # (B, 1, 1, T)
        projected = linear(x, self.in_proj.weight)
        q, k, v = (part.squeeze(1) for part in self._split(projected[:, None], each[:, None]))  # (B, H, P)
        keys, values = state["keys"], state["values"]
        write(keys, k, position, axis=2)
        write(values, v, position, axis=2)
        y = F.scaled_dot_product_attention(
            q[:, :, None].to(keys.dtype), keys[:, :, :places], values[:, :, :places], attn_mask=visible
        )
        return linear(y.flatten(1), self.out_proj.weight)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202). It mixes channels, not tokens, so its state is empty."""

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 2 * hidden, bias=False)
        self.out_proj = nn.Linear(hidden, width, bias=False)

    @torch.no_grad()
    def init_weights(self, *, residual_scale: float, generator: torch.Generator | None = None) -> None:
        """Fill uniformly within +- 1 / sqrt(fan in); the output projection is also scaled by ``residual_scale``."""
        fill_uniform(self.in_proj.weight, generator)
        fill_uniform(self.out_proj.weight, generator, scale=residual_scale)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Apply the layer to each token."""
        gate, value = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(F.silu(gate) * value)

    def init_state(self, batch: int, length: int) -> MixerState:
        """Return an empty state."""
        return {}

    def step(self, x: Float[Tensor, "b d"], state: MixerState, position: Position) -> Float[Tensor, "b d"]:
        """Apply the layer to one token of each row."""
        gate, value = linear(x, self.in_proj.weight).chunk(2, dim=-1)
        return linear(F.silu(gate) * value, self.out_proj.weight)
