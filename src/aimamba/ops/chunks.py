"""Chunks of tokens, as the parallel forms of recurrences process them.

Shape letters: B batch, L tokens, Q chunk length, K chunks.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def cut(tensor: Float[Tensor, "b l *rest"], chunk: int) -> Float[Tensor, "b k q *rest"]:
    """Cut the token axis into chunks; the last one is filled up with tokens of zeros."""
    padding = -tensor.shape[1] % chunk
    if padding:
        tensor = F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, padding))
    return tensor.unflatten(1, (-1, chunk))


def decay_between(total: Float[Tensor, "*b q"]) -> Float[Tensor, "*b q q"]:
    """Return what is left of each token (last axis) at each token from it on, and 0 before it.

    The causal mask is applied before the exponential, so gradients are finite for every decay.

    Args:
        total: Log-decay from the start of the chunk up to each token.
    """
    chunk = total.shape[-1]
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=total.device).tril()
    between = total[..., :, None] - total[..., None, :]
    return between.masked_fill_(~causal, -torch.inf).exp()
