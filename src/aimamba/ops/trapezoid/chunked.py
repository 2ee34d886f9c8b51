"""The recurrence of Mamba-3 in parallel over chunks of tokens, in PyTorch's operations.

An input enters twice, but always fades from its own token on: the second time with
``(1 - share_{s+1}) dt_{s+1} exp(total_{s+1} - total_s)`` in the step after it. So both add up to one weight

    w_s = share_s dt_s + (1 - share_{s+1}) dt_{s+1}
    y_t = sum over s <= t of exp(total_t - total_s) w_s (C_t . B_s) x_s

with ``total`` the running sum of log-decays, except that at its own token, s = t, an input has the first term alone.

Shape letters: B batch, L tokens, H heads, P head width, N state size, Q chunk length, K chunks.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops.chunks import cut, decay_between
from aimamba.ops.ssd.reference import LOWEST_LOG_DECAY, accumulation_dtype
from aimamba.ops.trapezoid.reference import TrapezoidState, trapezoid_recurrent


class Merged(NamedTuple):
    """Inputs that enter once.

    Attributes:
        x: Inputs times their weights ``w_s``, (B, L, H, P).
        excess: What the outputs then have too much of their own tokens, (B, L, H, P).
        state: State before the first token, with what enters then, (B, H, P, N), or None.
        latest: Input and B of the last token, as a state remembers them.
    """

    x: Tensor
    excess: Tensor
    state: Tensor | None
    latest: tuple[Tensor, Tensor]


def merge(
    x: Float[Tensor, "b l h p"],
    dt: Float[Tensor, "b l h"],
    share: Float[Tensor, "b l h"],
    B: Float[Tensor, "b l h n"],
    C: Float[Tensor, "b l h n"],
    initial_state: TrapezoidState | None,
) -> Merged:
    """Add up the two times that an input enters; the arguments are those of ``trapezoid_recurrent``."""
    wide = accumulation_dtype(x)
    dt, share = dt.to(wide), share.to(wide)
    own, later = share * dt, (1 - share) * dt
    weight = own + F.pad(later[:, 1:], (0, 0, 0, 1))  # nothing follows the last token yet
    state = None
    if initial_state is not None:  # its latest input enters once more, as that of a token before the first
        entering = (later[:, 0, :, None] * initial_state.x)[..., None] * initial_state.B[:, :, None]
        state = initial_state.h + entering
    narrow = B.to(x.dtype) * C.to(x.dtype)
    excess = (weight - own) * narrow.sum(dim=-1, dtype=wide)  # (B, L, H)
    return Merged(
        (weight[..., None] * x).to(x.dtype), excess[..., None] * x, state, (x[:, -1].to(wide), B[:, -1].to(wide))
    )


def trapezoid_chunked(
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
    """Compute ``trapezoid_recurrent``, with its arguments and results, in parallel over chunks of tokens.

    Any length and any chunk size work, and gradients are finite for every decay.
    """
    length, wide = x.shape[1], accumulation_dtype(x)
    if length == 0:
        return trapezoid_recurrent(x, dt, log_decay, share, B, C, initial_state)
    merged = merge(x, dt, share, B, C, initial_state)

    chunk = min(chunk_size, length)
    B, C, log_decay = B.to(x.dtype), C.to(x.dtype), log_decay.to(wide).clamp(min=LOWEST_LOG_DECAY)
    weighted, log_decay, B, C = (cut(tensor, chunk).transpose(2, 3) for tensor in (merged.x, log_decay, B, C))
    total = log_decay.cumsum(dim=-1)  # (B, K, H, Q)
    decay = decay_between(total).to(x.dtype)  # (B, K, H, Q, Q)
    y = ((C @ B.mT) * decay) @ weighted  # (B, K, H, Q, P)

    to_end = (total[..., -1:] - total).exp()[..., None]  # (B, K, H, Q, 1)
    added = (weighted * to_end).to(x.dtype).mT @ B  # (B, K, H, P, N)
    across = total[..., -1].exp()[..., None, None]  # (B, K, H, 1, 1)
    before, state = [], merged.state
    for k in range(added.shape[1]):
        before.append(torch.zeros_like(added[:, 0], dtype=wide) if state is None else state)
        state = torch.addcmul(added[:, k].to(wide), before[k], across[:, k])
    assert state is not None
    if len(before) > 1 or initial_state is not None:
        carried = torch.stack(before, dim=1).to(x.dtype)
        y = y + total.exp()[..., None] * (C @ carried.mT)
    y = y.transpose(2, 3).flatten(1, 2)[:, :length]
    return (y - merged.excess).to(x.dtype), TrapezoidState(state, *merged.latest)
