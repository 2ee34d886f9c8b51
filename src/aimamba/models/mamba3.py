"""The Mamba-3 mixer (Lahoti et al., arXiv 2603.15569) with one input and one output, and B and C of one group.

It has no convolution. Its shape and its initial weights follow the authors' code (state-spaces/mamba, Apache-2.0).

Shape letters: B batch, L tokens, D width, E inner width, H = E / P heads, P head width, N state size, S angles.
"""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.models.initial import fill_dt_bias, fill_uniform
from aimamba.models.norm import RMSNorm
from aimamba.models.state import MixerState
from aimamba.ops.cache import Position
from aimamba.ops.linear.linear import linear
from aimamba.ops.trapezoid.dispatch import trapezoid_scan
from aimamba.ops.trapezoid.reference import TrapezoidState, trapezoid_step, turn

_SMALLEST_RATE = 1e-4  # of decay


class _Tokens(NamedTuple):
    """What the recurrence needs of tokens (...), in the authors' words: A dt is the logarithm of the decay."""

    z: Tensor  # (..., E)
    x: Tensor  # (..., H, P)
    B: Tensor  # (..., H, N), wide as all that follow, and not turned yet
    C: Tensor  # (..., H, N)
    dt: Tensor  # (..., H)
    log_decay: Tensor  # (..., H)
    share: Tensor  # (..., H)
    angle: Tensor  # (..., H, S): by how far a token turns further


class Mamba3(nn.Module):
    """Projection, norms and biases of B and C, rotation, trapezoidal recurrence, skip, gate, projection."""

    WIDE: ClassVar[frozenset[str]] = frozenset({"dt_bias", "D", "B_bias", "C_bias"})

    def __init__(self, width: int, *, inner: int, state_size: int, head_width: int, chunk_size: int) -> None:
        super().__init__()
        self.inner = inner
        self.heads = inner // head_width
        self.state_size = state_size
        self.angles = state_size // 4  # of pairs in one half of the features; the other half is not turned
        self.chunk_size = chunk_size
        projected = 2 * inner + 2 * state_size + 3 * self.heads + self.angles
        self.in_proj = nn.Linear(width, projected, bias=False)  # z, x, B, C, dt, A, share, angles
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.B_bias = nn.Parameter(torch.empty(self.heads, state_size))
        self.C_bias = nn.Parameter(torch.empty(self.heads, state_size))
        self.B_norm = RMSNorm(state_size)
        self.C_norm = RMSNorm(state_size)
        self.D = nn.Parameter(torch.empty(self.heads))
        self.out_proj = nn.Linear(inner, width, bias=False)

    @torch.no_grad()
    def init_weights(self, *, residual_scale: float, generator: torch.Generator | None = None) -> None:
        """Fill every parameter.

        =========================  =====================================================
        in_proj                    uniform +- 1 / sqrt(fan in)
        out_proj                   the same, times ``residual_scale``
        B_bias, C_bias, norms, D   1
        dt_bias                    inverse softplus of log-uniform [0.001, 0.1]
        =========================  =====================================================
        """
        fill_uniform(self.in_proj.weight, generator)
        fill_uniform(self.out_proj.weight, generator, scale=residual_scale)
        for ones in (self.B_bias, self.C_bias, self.B_norm.weight, self.C_norm.weight, self.D):
            ones.fill_(1.0)
        fill_dt_bias(self.dt_bias, generator)

    def _split(self, projected: Tensor) -> _Tokens:
        sizes = [self.inner, self.inner, self.state_size, self.state_size, *[self.heads] * 3, self.angles]
        z, x, B, C, dt, rate, share, angle = projected.split(sizes, dim=-1)
        B, C, dt, rate, share, angle = (part.to(self.dt_bias.dtype) for part in (B, C, dt, rate, share, angle))
        B = self.B_norm(B)[..., None, :] + self.B_bias
        C = self.C_norm(C)[..., None, :] + self.C_bias
        dt = F.softplus(dt + self.dt_bias)
        log_decay = -_positive(rate).clamp(min=_SMALLEST_RATE) * dt
        angle = (math.pi * angle.tanh())[..., None, :] * dt[..., None]
        return _Tokens(z, x.unflatten(-1, (self.heads, -1)), B, C, dt, log_decay, share.sigmoid(), angle)

    def _combine(self, y: Tensor, tokens: _Tokens) -> Tensor:
        """Add the skip D x and gate; the result is (..., E) and wide."""
        y = torch.addcmul(y.to(self.D.dtype), self.D[:, None], tokens.x.to(self.D.dtype))
        return y.flatten(-2) * F.silu(tokens.z.to(y.dtype))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix all tokens in parallel."""
        tokens = self._split(self.in_proj(x))
        angle = tokens.angle.cumsum(dim=1)
        B, C = turn(tokens.B, angle), turn(tokens.C, angle)
        y, _ = trapezoid_scan(tokens.x, tokens.dt, tokens.log_decay, tokens.share, B, C, chunk_size=self.chunk_size)
        return self.out_proj(self._combine(y, tokens).to(tokens.z.dtype))

    def init_state(self, batch: int, length: int) -> MixerState:
        """Return the empty memory of ``batch`` rows; its size does not depend on ``length``."""
        width = self.inner // self.heads
        shapes = {"h": (width, self.state_size), "x": (width,), "B": (self.state_size,), "angle": (self.angles,)}
        weight = self.in_proj.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        return {name: weight.new_zeros(batch, self.heads, *shape, dtype=wide) for name, shape in shapes.items()}

    def step(self, x: Float[Tensor, "b d"], state: MixerState, position: Position) -> Float[Tensor, "b d"]:
        """Mix one token of each row with those before it, and update ``state``."""
        projected = linear(x, self.in_proj.weight)
        tokens = self._split(projected.to(torch.promote_types(projected.dtype, torch.float32)))
        state["angle"] = (state["angle"] + tokens.angle) % (2 * math.pi)
        B, C = turn(tokens.B, state["angle"]), turn(tokens.C, state["angle"])
        before = TrapezoidState(state["h"], state["x"], state["B"])
        y, after = trapezoid_step(tokens.x, tokens.dt, tokens.log_decay, tokens.share, B, C, before)
        state |= after._asdict()
        return linear(self._combine(y, tokens).to(self.out_proj.weight.dtype), self.out_proj.weight)


def _positive(x: Tensor) -> Tensor:
    """Return 1 + x for x from 0 on, and 1 / (1 - x) below: positive, and large for large x without an exponential."""
    return x.clamp(min=0) + 1 / (1 - x.clamp(max=0))
