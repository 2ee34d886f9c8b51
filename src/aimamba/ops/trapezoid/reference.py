"""The recurrence of Mamba-3 in its form with one input and one output: its definition, and single steps.

It is Mamba-2's, with two differences (Lahoti et al., "Mamba-3", arXiv 2603.15569). An input enters by the trapezoidal
rule: a part ``share`` with the step size of its own token, and the rest with that of the next one, which lets it fade.
And each head has B and C of its own, which the mixer has turned by angles that add up (``turn``), so that products of
them depend on the difference of the angles: the state of a complex recurrence. With ``a_t = exp(log_decay_t)``

    h_t = a_t h_{t-1} + (1 - share_t) dt_t a_t x_{t-1} B_{t-1}^T + share_t dt_t x_t B_t^T        y_t = h_t C_t

Decays are computed in float32 or better, whatever the dtype of the inputs; a state is never narrower than float32.

Shape letters: B batch, L tokens, H heads, P head width, N state size, S angles.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.ssd.reference import accumulation_dtype


class TrapezoidState(NamedTuple):
    """What is remembered between tokens.

    Attributes:
        h: State, (B, H, P, N).
        x: Input of the latest token, (B, H, P).
        B: Its B, (B, H, N).
    """

    h: Tensor
    x: Tensor
    B: Tensor


def turn(x: Float[Tensor, "*b n"], angle: Float[Tensor, "*b s"]) -> Float[Tensor, "*b n"]:
    """Turn the first S pairs of neighbouring features, each by an angle in radians; the others stay."""
    turned, rest = x.split([2 * angle.shape[-1], x.shape[-1] - 2 * angle.shape[-1]], dim=-1)
    even, odd = turned.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2), rest], dim=-1)


def trapezoid_recurrent(
    x: Float[Tensor, "b l h p"],
    dt: Float[Tensor, "b l h"],
    log_decay: Float[Tensor, "b l h"],
    share: Float[Tensor, "b l h"],
    B: Float[Tensor, "b l h n"],
    C: Float[Tensor, "b l h n"],
    initial_state: TrapezoidState | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "b l h p"], TrapezoidState]:
    """Run the recurrence token by token.

    Args:
        x: Inputs of the heads.
        dt: Step sizes, positive.
        log_decay: Logarithm of what is left of the state, at most 0.
        share: Share of an input that enters with its own token, in [0, 1].
        B: Input projections of each head.
        C: Output projections of each head.
        initial_state: What is remembered before the first token; zeros by default.
        chunk_size: Tokens that the other forms handle at once; not used here.

    Returns:
        Outputs in the dtype of ``x``, and what is remembered after the last token, in float32 (float64 for float64
        inputs).
    """
    del chunk_size
    state = initial_state or empty_state(x, B)
    outputs = []
    for t in range(x.shape[1]):
        y, state = trapezoid_step(x[:, t], dt[:, t], log_decay[:, t], share[:, t], B[:, t], C[:, t], state)
        outputs.append(y)
    return (torch.stack(outputs, dim=1) if outputs else torch.empty_like(x)), state


def empty_state(x: Float[Tensor, "b l h p"], B: Float[Tensor, "b l h n"]) -> TrapezoidState:
    """Return what is remembered before the first token: zeros."""
    (batch, _, heads, width), size = x.shape, B.shape[-1]
    shapes = (batch, heads, width, size), (batch, heads, width), (batch, heads, size)
    return TrapezoidState(*(x.new_zeros(shape, dtype=accumulation_dtype(x)) for shape in shapes))


def trapezoid_step(
    x: Float[Tensor, "b h p"],
    dt: Float[Tensor, "b h"],
    log_decay: Float[Tensor, "b h"],
    share: Float[Tensor, "b h"],
    B: Float[Tensor, "b h n"],
    C: Float[Tensor, "b h n"],
    state: TrapezoidState,
) -> tuple[Float[Tensor, "b h p"], TrapezoidState]:
    """Advance the recurrence by one token; the arguments are those of ``trapezoid_recurrent`` without the token axis.

    Returns:
        The output in the dtype of ``x``, and the new state; ``state`` itself is not changed.
    """
    inputs, dt, log_decay, share, B, C = (tensor.to(state.h.dtype) for tensor in (x, dt, log_decay, share, B, C))
    decay = log_decay.exp()
    before, own = (1 - share) * dt * decay, share * dt
    h = torch.addcmul((before[..., None] * state.x)[..., None] * state.B[:, :, None], state.h, decay[..., None, None])
    h = torch.addcmul(h, (own[..., None] * inputs)[..., None], B[:, :, None])
    return (h * C[:, :, None]).sum(dim=-1).to(x.dtype), TrapezoidState(h, inputs, B)
