"""The SSD in parallel over chunks of tokens, in PyTorch's operations (Dao and Gu, arXiv 2405.21060, section 6).

Shape letters: B batch, L tokens, H heads, P head width, N state size, Q chunk length, K chunks.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.chunks import cut, decay_between
from aimamba.ops.ssd.reference import LOWEST_LOG_DECAY, accumulation_dtype, ssd_recurrent


def ssd_chunked(
    x: Float[Tensor, "b l h p"],
    dt: Float[Tensor, "b l h"],
    A: Float[Tensor, " h"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    initial_state: Float[Tensor, "b h p n"] | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    """Compute ``ssd_recurrent``, with its arguments and results, in parallel over chunks of ``chunk_size`` tokens.

    Any length and any chunk size work, and gradients are finite for every decay.
    """
    batch, length, heads, width = x.shape
    wide = accumulation_dtype(x)
    if length == 0:
        return ssd_recurrent(x, dt, A, B, C, initial_state)
    chunk = min(chunk_size, length)
    x, dt, B, C = (cut(t, chunk) for t in (x, dt.to(wide), B, C))  # a token with dt = 0 leaves the state as it is
    log_decay = (dt * A.to(wide)).clamp(min=LOWEST_LOG_DECAY)
    total = log_decay.cumsum(dim=2).transpose(2, 3)  # (B, K, H, Q): log decay from the chunk's start up to each token
    dt_x = (dt[..., None] * x).to(x.dtype).transpose(2, 3)  # (B, K, H, Q, P)

    # Within a chunk: y_t = sum over s <= t of (C_t . B_s) exp(total_t - total_s) dt_s x_s
    decay = decay_between(total).to(x.dtype)  # (B, K, H, Q, Q)
    similarity = C @ B.transpose(-1, -2)  # (B, K, Q, Q), shared by the heads
    y = (similarity[:, :, None] * decay) @ dt_x  # (B, K, H, Q, P)

    # The contribution of each chunk to the state at its end, then the recurrence over chunks.
    to_end = (total[..., -1:] - total).exp()[..., None]  # (B, K, H, Q, 1)
    added = (dt_x * to_end).to(x.dtype).transpose(-1, -2) @ B[:, :, None]  # (B, K, H, P, N)
    state = initial_state
    if state is None:
        state = x.new_zeros((batch, heads, width, B.shape[-1]), dtype=wide)
    across = total[..., -1].exp()[..., None, None]  # (B, K, H, 1, 1)
    before = []
    for k in range(added.shape[1]):
        before.append(state)
        state = torch.addcmul(added[:, k].to(state.dtype), state, across[:, k].to(state.dtype))

    # The contribution of the state before a chunk to each of its tokens; zero for a single chunk without a first state.
    if len(before) > 1 or initial_state is not None:
        carried = torch.stack(before, dim=1).to(C.dtype)  # (B, K, H, P, N)
        y = y + total.exp()[..., None] * (C[:, :, None] @ carried.transpose(-1, -2))
    return y.transpose(2, 3).flatten(1, 2)[:, :length].to(x.dtype), state
