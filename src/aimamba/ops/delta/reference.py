"""The gated delta rule: the recurrence that defines it, and single steps.

For every head the state maps keys to values (Yang, Kautz and Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464,
eq. 10). A token lets it fade, and moves what it returns for the token's key towards the token's value:

    S_t = a_t S_{t-1} + b_t (v_t - a_t S_{t-1} k_t) k_t^T        y_t = S_t q_t

with ``a_t = exp(log_decay_t)`` in (0, 1] and ``b_t`` in [0, 1]. Keys have length 1 at most; otherwise it may diverge.

Everything is computed in float32 or better, whatever the dtype of the inputs.

Shape letters: B batch, L tokens, H heads, N features of a key, P features of a value.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.ssd.reference import accumulation_dtype


def delta_recurrent(
    q: Float[Tensor, "b l h n"],
    k: Float[Tensor, "b l h n"],
    v: Float[Tensor, "b l h p"],
    log_decay: Float[Tensor, "b l h"],
    beta: Float[Tensor, "b l h"],
    initial_state: Float[Tensor, "b h p n"] | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    """Run the recurrence token by token.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        log_decay: Logarithm of what is left of the state, at most 0.
        beta: How far the state moves towards a value, in [0, 1].
        initial_state: State before the first token; zeros by default.
        chunk_size: Tokens that the other forms handle at once; not used here.

    Returns:
        Outputs in the dtype of ``v``, and the state after the last token in float32 (float64 for float64 values).
    """
    del chunk_size
    batch, length, heads, width = v.shape
    state = initial_state
    if state is None:
        state = v.new_zeros((batch, heads, width, k.shape[-1]), dtype=accumulation_dtype(v))
    outputs = []
    for t in range(length):
        y, state = delta_step(q[:, t], k[:, t], v[:, t], log_decay[:, t], beta[:, t], state)
        outputs.append(y)
    return (torch.stack(outputs, dim=1) if outputs else torch.empty_like(v)), state


def delta_step(
    q: Float[Tensor, "b h n"],
    k: Float[Tensor, "b h n"],
    v: Float[Tensor, "b h p"],
    log_decay: Float[Tensor, "b h"],
    beta: Float[Tensor, "b h"],
    state: Float[Tensor, "b h p n"],
) -> tuple[Float[Tensor, "b h p"], Float[Tensor, "b h p n"]]:
    """Advance the recurrence by one token; the arguments are those of ``delta_recurrent`` without the token axis.

    Returns:
        The output in the dtype of ``v``, and the new state; ``state`` itself is not changed.
    """
    q, k, value, log_decay, beta = (tensor.to(state.dtype) for tensor in (q, k, v, log_decay, beta))
    state = state * log_decay.exp()[..., None, None]
    moved = beta[..., None] * (value - (state * k[:, :, None]).sum(dim=-1))  # (B, H, P)
    state = torch.addcmul(state, moved[..., None], k[:, :, None])
    return (state * q[:, :, None]).sum(dim=-1).to(v.dtype), state
