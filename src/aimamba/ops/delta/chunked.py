"""The gated delta rule in parallel over chunks of tokens (Yang et al., arXiv 2412.06464, section 3.3).

With ``total`` the running sum of log-decays in a chunk and ``S`` the state before it, the state after token t is

    exp(total_t) S + sum over s <= t of exp(total_t - total_s) u_s k_s^T

where ``u_s`` is how far the token moves its value. That depends on the tokens before it in the chunk, and so solves a
triangular system, the WY representation of the product of all ``I - b k k^T``:

    u_t + b_t sum over s < t of exp(total_t - total_s) (k_t . k_s) u_s = b_t (v_t - exp(total_t) S k_t)

Shape letters: B batch, L tokens, H heads, N features of a key, P features of a value, Q chunk length, K chunks.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.chunks import cut, decay_between
from aimamba.ops.delta.reference import delta_recurrent
from aimamba.ops.ssd.reference import LOWEST_LOG_DECAY, accumulation_dtype


def delta_chunked(
    q: Float[Tensor, "b l h n"],
    k: Float[Tensor, "b l h n"],
    v: Float[Tensor, "b l h p"],
    log_decay: Float[Tensor, "b l h"],
    beta: Float[Tensor, "b l h"],
    initial_state: Float[Tensor, "b h p n"] | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    """Compute ``delta_recurrent``, with its arguments and results, in parallel over chunks of ``chunk_size`` tokens.

    Any length and any chunk size work, and gradients are finite for every decay. Autocast does not reach inside.
    """
    length = v.shape[1]
    if length == 0:
        return delta_recurrent(q, k, v, log_decay, beta, initial_state)
    wide, chunk = accumulation_dtype(v), min(chunk_size, length)
    with torch.autocast("cpu" if v.is_meta else v.device.type, enabled=False):
        # (B, K, H, Q, ...); tokens of zeros leave the state as it is
        tokens = [cut(tensor.to(wide), chunk).transpose(2, 3) for tensor in (q, k, v, log_decay, beta)]
        y, state = _chunks(tokens, None if initial_state is None else initial_state.to(wide))
    return y.transpose(2, 3).flatten(1, 2)[:, :length].to(v.dtype), state


def _chunks(tokens: list[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the outputs (B, K, H, Q, P) and the last state, from tokens in chunks and the first state."""
    q, k, v, log_decay, beta = tokens
    count, width = v.shape[1], v.shape[-1]
    total = log_decay.clamp(min=LOWEST_LOG_DECAY).cumsum(dim=-1)  # (B, K, H, Q): from the chunk's start to each token
    decay = decay_between(total)  # (B, K, H, Q, Q)
    begun, beta = total.exp()[..., None], beta[..., None]  # (B, K, H, Q, 1)

    # The system has one right-hand side for the values and one for the state: u = own - of_state S^T.
    carries = count > 1 or state is not None
    moves = beta * (torch.cat([v, begun * k], dim=-1) if carries else v)
    system = (beta * k @ k.mT) * decay  # its diagonal is not read, but taken for ones
    own, of_state = torch.linalg.solve_triangular(system, moves, upper=False, unitriangular=True).split(
        [width, moves.shape[-1] - width], dim=-1
    )
    scores = (q @ k.mT) * decay
    lasting = (total[..., -1:] - total).exp()[..., None] * k  # (B, K, H, Q, N)
    if not carries:
        return scores @ own, own[:, 0].mT @ lasting[:, 0]

    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], width, k.shape[-1])
    across = begun[:, :, :, -1:]  # (B, K, H, 1, 1)
    before, moved = [], []
    for i in range(count):
        before.append(state)
        moved.append(own[:, i] - of_state[:, i] @ state.mT)
        state = across[:, i] * state + moved[i].mT @ lasting[:, i]
    carried = torch.stack(before, dim=1)  # (B, K, H, P, N)
    return scores @ torch.stack(moved, dim=1) + begun * (q @ carried.mT), state
