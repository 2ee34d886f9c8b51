"""The state-space duality (SSD) operator of Mamba-2: the recurrence that defines it, and single steps.

For every head the operator is the linear recurrence (Dao and Gu, "Transformers are SSMs", arXiv 2405.21060, eq. 2)

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        y_t = h_t C_t

with one scalar ``A`` a head and ``B``, ``C`` shared by all heads.

* ``ssd_recurrent`` runs it token by token: slow and simple, the reference that tests compare with. The faster forms of
  whole sequences have the same signature: ``ssd_chunked``, ``ssd_autograd``, the Triton kernels, and ``ssd_scan``,
  which chooses one of them.
* ``ssd_step`` advances one token: it reads and writes the whole state, H P N numbers a row.
* ``ssd_step_dual`` advances one token by attention-like sums over a cache of all tokens (section 3): it writes H P + N
  numbers and reads as many for each token so far, which is less than the state for about the first 2 N tokens.

Decays are computed in float32 or better, whatever the dtype of the inputs; a state is never narrower than float32.

Shape letters: B batch, L tokens, H heads, P head width, N state size, T cached tokens.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.cache import Position, seen, write
from aimamba.ops.linear.linear import weighted_sums

SSDForm = Callable[..., tuple[Tensor, Tensor]]
"""Any form of the operator for whole sequences; all have the signature of ``ssd_recurrent``."""

# A log-decay below this erases the state beyond the resolution of float64 (e^-60 = 9e-27). Clamping there keeps the
# cumulative sums of a chunk small, so that their differences stay accurate however strong a decay is.
LOWEST_LOG_DECAY = -60.0


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of decays and states for inputs ``x``: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def ssd_recurrent(
    x: Float[Tensor, "b l h p"],
    dt: Float[Tensor, "b l h"],
    A: Float[Tensor, " h"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    initial_state: Float[Tensor, "b h p n"] | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    """Run the recurrence token by token.

    Args:
        x: Inputs of the heads.
        dt: Step sizes, positive.
        A: Decay rates, negative.
        B: Input projections, shared by the heads.
        C: Output projections, shared by the heads.
        initial_state: State before the first token; zeros by default.
        chunk_size: Tokens that the other forms handle at once; not used here.

    Returns:
        Outputs in the dtype of ``x``, and the state after the last token in float32 (float64 for float64 inputs).
    """
    del chunk_size
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
    """Advance the recurrence by one token; the arguments are those of ``ssd_recurrent`` without the token axis.

    Returns:
        The output in the dtype of ``x``, and the new state; ``state`` itself is not changed.
    """
    dtype = state.dtype
    dt = dt.to(dtype)
    decay = torch.exp(dt * A.to(dtype))[..., None, None]  # (B, H, 1, 1)
    update = (dt[..., None] * x.to(dtype))[..., None] * B.to(dtype)[:, None, None, :]  # (B, H, P, N)
    state = torch.addcmul(update, state, decay)
    y = C.to(dtype)[:, None] @ state.flatten(1, 2).mT  # (B, 1, HP): several times faster on CPU than an einsum
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
        cache: x and B of the tokens so far, and for every head the remaining weight of each token: its dt times the
            decay since. Zeros before the first token. Updated in place.
        position: Tokens that each row has consumed before this one, below T.

    Returns:
        ``y_t = sum over s <= t of (C_t . B_s) weight_s x_s``, in the dtype of ``x``.
    """
    inputs, projections, weights = cache
    dt = dt.to(weights.dtype)
    write(inputs, x, position, axis=2)
    write(projections, B, position, axis=1)
    used = seen(position)
    weights = weights[:, :, :used]
    weights *= torch.exp(dt * A.to(dt.dtype))[..., None]
    write(weights, dt, position, axis=2)
    similarity = torch.bmm(C.to(projections.dtype)[:, None], projections[:, :used].mT)  # (B, 1, T), for all heads
    return weighted_sums((similarity * weights).to(inputs.dtype), inputs).to(x.dtype)
