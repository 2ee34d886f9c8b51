"""The state-space duality (SSD) operator of Mamba-2, in four forms that compute the same function.

For every head the operator is the linear recurrence (Dao and Gu, "Transformers are SSMs", arXiv 2405.21060, eq. 2)

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        y_t = h_t C_t

with one scalar ``A`` a head and ``B``, ``C`` shared by all heads.

* ``ssd_recurrent`` runs it token by token: slow and obviously right, the oracle of the tests.
* ``ssd_chunked`` is the parallel form (section 6): matrix products within chunks, a recurrence over chunk states.
* ``ssd_step`` advances one token: it reads and writes the whole state, H P N numbers a row.
* ``ssd_step_dual`` advances one token by attention-like sums over a cache of all tokens (section 3): it writes H P + N
  numbers and reads as many for each token so far, which is less than the state for the first 2 N tokens or so.

Decays are computed in float32 or better, whatever the dtype of the inputs; a state is never narrower than float32.

Shape letters: B batch, L tokens, H heads, P head width, N state size, Q chunk length, K chunks, T cached tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.linear.linear import weighted_sums
from aimamba.ops.mixer.cache import Position, seen, write

# A log-decay below this erases the state to beyond float64's resolution (e^-60 = 9e-27). Clamping there keeps the
# cumulative sums of a chunk small, so that their differences stay accurate next to an arbitrarily strong decay.
LOWEST_LOG_DECAY = -60.0


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Give the dtype of decays and states for inputs ``x``: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def ssd_recurrent(
    x: Float[Tensor, "b l h p"],
    dt: Float[Tensor, "b l h"],
    A: Float[Tensor, " h"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    initial_state: Float[Tensor, "b h p n"] | None = None,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    """Run the recurrence token by token.

    Args:
        x: Inputs of the heads.
        dt: Step sizes, positive.
        A: Decay rates, negative.
        B: Input projections, shared by the heads.
        C: Output projections, shared by the heads.
        initial_state: State before the first token; zeros when absent.

    Returns:
        Outputs in the dtype of ``x``, and the state after the last token in float32 (float64 for float64 inputs).
    """
    batch, length, heads, width = x.shape
    state = initial_state
    if state is None:
        state = x.new_zeros((batch, heads, width, B.shape[-1]), dtype=accumulation_dtype(x))
    outputs = []
    for t in range(length):
        y, state = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], state)
        outputs.append(y)
    return (torch.stack(outputs, dim=1) if outputs else torch.empty_like(x)), state


def ssd_step(
    x: Float[Tensor, "b h p"],
    dt: Float[Tensor, "b h"],
    A: Float[Tensor, " h"],
    B: Float[Tensor, "b n"],
    C: Float[Tensor, "b n"],
    state: Float[Tensor, "b h p n"],
) -> tuple[Float[Tensor, "b h p"], Float[Tensor, "b h p n"]]:
    """Advance the recurrence by one token; arguments as ``ssd_recurrent`` without the token axis."""
    dtype = state.dtype
    dt = dt.to(dtype)
    decay = torch.exp(dt * A.to(dtype))[..., None, None]  # (B, H, 1, 1)
    update = (dt[..., None] * x.to(dtype))[..., None] * B.to(dtype)[:, None, None, :]  # (B, H, P, N)
    state = torch.addcmul(update, state, decay)
    y = C.to(dtype)[:, None] @ state.flatten(1, 2).mT  # (B, 1, HP): several times faster on CPU than as an einsum
    return y.view(x.shape).to(x.dtype), state


def ssd_step_dual(
    x: Float[Tensor, "b h p"],
    dt: Float[Tensor, "b h"],
    A: Float[Tensor, " h"],
    B: Float[Tensor, "b n"],
    C: Float[Tensor, "b n"],
    cache: tuple[Float[Tensor, "b h t p"], Float[Tensor, "b t n"], Float[Tensor, "b h t"]],
    position: Position,
) -> Float[Tensor, "b h p"]:
    """Advance the recurrence by one token in its dual form, from the first token on.

    Args:
        x: Inputs of the heads.
        dt: Step sizes, positive.
        A: Decay rates, negative.
        B: Input projections, shared by the heads.
        C: Output projections, shared by the heads.
        cache: x and B of the tokens so far, and for every head the weight that is left of each, dt times the decay
            since; zeros before the first token. Updated.
        position: Tokens that each row has taken before this one, below T.

    Returns:
        ``y_t = sum over s <= t of (C_t . B_s) weight_s x_s``, in the dtype of ``x``.
    """
    inputs, projections, weights = cache
    dt = dt.to(weights.dtype)
    write(inputs, x, position, axis=2)
    write(projections, B, position, axis=1)
    places = seen(position)
    weights = weights[:, :, :places]
    weights *= torch.exp(dt * A.to(dt.dtype))[..., None]
    write(weights, dt, position, axis=2)
    similarity = torch.bmm(C.to(projections.dtype)[:, None], projections[:, :places].mT)  # (B, 1, T), for all heads
    return weighted_sums((similarity * weights).to(inputs.dtype), inputs).to(x.dtype)
