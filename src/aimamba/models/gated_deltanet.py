"""The mixer of Gated DeltaNet (Yang, Kautz and Hatamizadeh, arXiv 2412.06464), behind the interface of ``Mamba2``.

Shape letters: B batch, L tokens, D width, E inner width, H = E / P heads, P features of a value, N features of a key,
C = E + 2 H N convolved channels.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from aimamba.models.initial import fill_dt_bias, fill_uniform
from aimamba.models.norm import RMSNorm
from aimamba.models.state import MixerState
from aimamba.ops.cache import Position
from aimamba.ops.conv.causal import causal_conv_silu, causal_conv_step
from aimamba.ops.delta.dispatch import delta_scan
from aimamba.ops.delta.reference import delta_step
from aimamba.ops.linear.linear import linear
from aimamba.ops.norm.rms import rms_norm

_SMALLEST_A, _LARGEST_A = 1e-4, 16.0
_EPS = 1e-6  # of the length of queries and keys


class GatedDeltaNet(nn.Module):
    """Projection, causal convolution, gated delta rule, norm of each head, gate, projection."""

    WIDE: ClassVar[frozenset[str]] = frozenset({"A_log", "dt_bias"})

    def __init__(
        self, width: int, *, inner: int, state_size: int, head_width: int, conv_width: int, chunk_size: int
    ) -> None:
        super().__init__()
        self.inner = inner
        self.heads = inner // head_width
        self.keys = self.heads * state_size
        self.chunk_size = chunk_size
        convolved = inner + 2 * self.keys
        self.in_proj = nn.Linear(width, inner + convolved + 2 * self.heads, bias=False)  # z, (q, k, v), dt, beta
        self.conv_weight = nn.Parameter(torch.empty(convolved, conv_width))
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.norm = RMSNorm(head_width)
        self.out_proj = nn.Linear(inner, width, bias=False)

    @torch.no_grad()
    def init_weights(self, *, residual_scale: float, generator: torch.Generator | None = None) -> None:
        """Fill every parameter.

        ===============  =====================================================
        in_proj, conv    uniform +- 1 / sqrt(fan in)
        out_proj         the same, times ``residual_scale``
        A_log            log of uniform [0.0001, 16]
        norm             1
        dt_bias          inverse softplus of log-uniform [0.001, 0.1]
        ===============  =====================================================
        """
        fill_uniform(self.in_proj.weight, generator)
        fill_uniform(self.conv_weight, generator)
        fill_uniform(self.out_proj.weight, generator, scale=residual_scale)
        self.A_log.uniform_(_SMALLEST_A, _LARGEST_A, generator=generator).log_()
        self.norm.weight.fill_(1.0)
        fill_dt_bias(self.dt_bias, generator)

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split the input projection into z, the convolved part (q, k, v), the log-decay and beta, these wide."""
        sizes = [self.inner, self.inner + 2 * self.keys, self.heads, self.heads]
        z, qkv, dt, beta = projected.split(sizes, dim=-1)
        dt = F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)
        return z, qkv, -self.A_log.exp() * dt, beta.to(dt.dtype).sigmoid()

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the convolved part into queries, keys (..., H, N) and values (..., H, P), and scale the first two."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)) for part in qkv.split([self.keys, self.keys, self.inner], dim=-1)
        )
        wide = torch.promote_types(qkv.dtype, torch.float32)
        q, k = (each.to(wide) * (each.to(wide).square().sum(-1, keepdim=True) + _EPS).rsqrt() for each in (q, k))
        return q * q.shape[-1] ** -0.5, k, v

    def _gate(self, y: Tensor, z: Tensor) -> Tensor:
        """Normalise each head of y (..., H, P), then gate; the result is (..., E) and wide."""
        wide = torch.promote_types(y.dtype, torch.float32)
        return rms_norm(y.to(wide), self.norm.weight).flatten(-2) * F.silu(z.to(wide))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix all tokens in parallel."""
        z, qkv, log_decay, beta = self._split(self.in_proj(x))
        without_bias = self.conv_weight.new_zeros(len(self.conv_weight))
        q, k, v = self._heads(causal_conv_silu(qkv, self.conv_weight, without_bias))
        y, _ = delta_scan(q, k, v, log_decay, beta, chunk_size=self.chunk_size)
        return self.out_proj(self._gate(y, z).to(z.dtype))

    def init_state(self, batch: int, length: int) -> MixerState:
        """Return the empty memory of ``batch`` rows; its size does not depend on ``length``."""
        weight = self.conv_weight
        channels, taps = weight.shape
        shape = batch, self.heads, self.inner // self.heads, self.keys // self.heads
        wide = torch.promote_types(weight.dtype, torch.float32)
        return {
            "window": weight.new_zeros(batch, taps - 1, channels, dtype=wide),
            "delta": weight.new_zeros(shape, dtype=wide),
        }

    def step(self, x: Float[Tensor, "b d"], state: MixerState, position: Position) -> Float[Tensor, "b d"]:
        """Mix one token of each row with those before it, and update ``state``."""
        projected = linear(x, self.in_proj.weight)
        z, qkv, log_decay, beta = self._split(projected.to(torch.promote_types(projected.dtype, torch.float32)))
        without_bias = qkv.new_zeros(qkv.shape[-1])
        qkv, state["window"] = causal_conv_step(qkv, self.conv_weight, without_bias, state["window"])
        y, state["delta"] = delta_step(*self._heads(F.silu(qkv)), log_decay, beta, state["delta"])
        return linear(self._gate(y, z).to(self.out_proj.weight.dtype), self.out_proj.weight)
