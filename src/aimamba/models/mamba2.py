"""The Mamba-2 mixer (Dao and Gu, arXiv 2405.21060), one group of B and C for all heads.

Shape letters: B batch, L tokens, D width, E inner width, H = E / P heads, P head width, N state size,
C = E + 2N convolved channels.
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
from aimamba.ops.conv.causal import causal_conv_step
from aimamba.ops.linear.linear import linear
from aimamba.ops.mixer.dispatch import mixer_sequence
from aimamba.ops.mixer.weights import MixerWeights
from aimamba.ops.norm.rms import gated_rms_norm
from aimamba.ops.ssd.reference import ssd_step, ssd_step_dual

_LARGEST_A = 16.0


class Mamba2(nn.Module):
    """Projection, causal convolution, SSD, gated norm, projection."""

    WIDE: ClassVar[frozenset[str]] = frozenset({"A_log", "D", "dt_bias"})

    def __init__(
        self, width: int, *, inner: int, state_size: int, head_width: int, conv_width: int, chunk_size: int
    ) -> None:
        super().__init__()
        self.inner = inner
        self.heads = self.inner // head_width
        self.state_size = state_size
        self.chunk_size = chunk_size
        convolved = inner + 2 * state_size
        self.in_proj = nn.Linear(width, inner + convolved + self.heads, bias=False)  # z, (x, B, C), dt
        self.conv_weight = nn.Parameter(torch.empty(convolved, conv_width))
        self.conv_bias = nn.Parameter(torch.empty(convolved))
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm = RMSNorm(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)

    @torch.no_grad()
    def init_weights(self, *, residual_scale: float, generator: torch.Generator | None = None) -> None:
        """Fill every parameter.

        ===============  =====================================================
        in_proj, conv    uniform +- 1 / sqrt(fan in)
        out_proj         the same, times ``residual_scale``
        A_log            log of uniform [1, 16]
        D, norm          1
        dt_bias          inverse softplus of log-uniform [0.001, 0.1]
        ===============  =====================================================
        """
        fill_uniform(self.in_proj.weight, generator)
        fill_uniform(self.conv_weight, generator)
        bound = self.conv_weight.shape[1] ** -0.5
        self.conv_bias.uniform_(-bound, bound, generator=generator)
        fill_uniform(self.out_proj.weight, generator, scale=residual_scale)
        self.A_log.uniform_(1.0, _LARGEST_A, generator=generator).log_()
        self.D.fill_(1.0)
        self.norm.weight.fill_(1.0)
        fill_dt_bias(self.dt_bias, generator)

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the input projection into the gate z, the convolved part (x, B, C) and the step size dt."""
        z, xBC, dt = projected.split([self.inner, self.inner + 2 * self.state_size, self.heads], dim=-1)
        return z, xBC, F.softplus(dt + self.dt_bias.to(dt.dtype))

    def _combine(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Add the skip D x, gate, normalise, project; y and x are (..., H, P)."""
        y = torch.addcmul(y, self.D.to(y.dtype)[:, None], x)
        y = gated_rms_norm(y.flatten(-2), z, self.norm.weight)
        return linear(y.to(self.out_proj.weight.dtype), self.out_proj.weight)

    @property
    def mixer_weights(self) -> MixerWeights:
        """The parameters except the two projections, as the operators of ``aimamba.ops.mixer`` take them."""
        return MixerWeights(self.conv_weight, self.conv_bias, self.dt_bias, self.A_log, self.D, self.norm.weight)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix all tokens in parallel."""
        mixed = mixer_sequence(
            self.in_proj(x), self.mixer_weights, state_size=self.state_size, chunk_size=self.chunk_size
        )
        return self.out_proj(mixed)

    def init_state(self, batch: int, length: int) -> MixerState:
        """Return the empty memory of ``batch`` rows of at most ``length`` tokens.

        It is a cache of all tokens, for the dual form, as long as a step that reads all of it moves no more numbers
        than one that reads and writes the state, and the state otherwise, whose size does not depend on ``length``.
        """
        weight = self.conv_weight
        channels, taps = weight.shape
        heads, size, wide = self.heads, self.state_size, torch.promote_types(weight.dtype, torch.float32)
        window = weight.new_zeros(batch, taps - 1, channels, dtype=wide)
        if length > 2 * size + 1:
            ssm = weight.new_zeros(batch, heads, self.inner // heads, size, dtype=wide)
            return {"window": window, "ssm": ssm}
        return {
            "window": window,
            "inputs": weight.new_zeros(batch, heads, length, self.inner // heads),
            "projections": weight.new_zeros(batch, length, size, dtype=wide),
            "weights": weight.new_zeros(batch, heads, length, dtype=wide),
        }

    def step(self, x: Float[Tensor, "b d"], state: MixerState, position: Position) -> Float[Tensor, "b d"]:
        """Mix one token of each row, at its own ``position``, with those before it, and update ``state``."""
        # Between matrix products the number of operations sets the speed: widen once instead of in each operation.
        projected = linear(x, self.in_proj.weight)
        z, xBC, dt = self._split(projected.to(torch.promote_types(projected.dtype, torch.float32)))
        xBC, state["window"] = causal_conv_step(xBC, self.conv_weight, self.conv_bias, state["window"])
        inputs, B, C = F.silu(xBC).split([self.inner, self.state_size, self.state_size], dim=-1)
        inputs = inputs.view(len(x), self.heads, -1)  # (B, H, P)
        A = -self.A_log.to(dt.dtype).exp()
        if "ssm" in state:
            y, state["ssm"] = ssd_step(inputs, dt, A, B, C, state["ssm"])
        else:
            cache = state["inputs"], state["projections"], state["weights"]
            y = ssd_step_dual(inputs, dt, A, B, C, cache, position)
        return self._combine(y, inputs, z)
