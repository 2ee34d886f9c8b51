"""Matrix products of decoding, which read all weights of a layer, or all tokens of a cache, for a few rows.

``weighted_sums`` keeps the index tensors of its last call, because all blocks of a step use the same ones.
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_FEWEST, _MOST = 2, 64


def linear(x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"]) -> Float[Tensor, "*b o"]:
    """Compute ``x @ weight.T``.

    On a CPU, 2 to 64 rows in float32 are computed as ``weight @ x.T``, which reads the weights up to three times as
    fast (docs/log.md).
    """
    rows = x.shape[:-1].numel()
    if x.device.type != "cpu" or x.dtype != torch.float32 or not _FEWEST <= rows <= _MOST:
        return F.linear(x, weight)
    return (weight @ x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)


def split_linear(x: Float[Tensor, "b i"], weight: Float[Tensor, "o i"]) -> Float[Tensor, "s b o"]:
    """Compute ``linear`` in parts whose sum is the result; here a single one."""
    return linear(x, weight)[None]


def weighted_sums(weights: Float[Tensor, "b h t"], values: Float[Tensor, "b h l p"]) -> Float[Tensor, "b h p"]:
    """Return the sum of the first T of L values, each times its weight, for every row and head.

    On a CPU the sums are computed as bags of an embedding table, which is two to ten times as fast in PyTorch as a
    batched product of one row with a matrix (docs/log.md).

    Args:
        weights: Weights of the values, in the dtype of ``values``.
        values: Contiguous.
    """
    count = weights.shape[-1]
    if values.device.type != "cpu":
        return (weights[:, :, None] @ values[:, :, :count]).squeeze(2)
    bags, (length, width) = weights.shape[0] * weights.shape[1], values.shape[2:]
    members, starts = _bags(bags, length, count)
    sums = F.embedding_bag(members, values.view(-1, width), starts, mode="sum", per_sample_weights=weights.reshape(-1))
    return sums.view(*weights.shape[:2], width)


@lru_cache(maxsize=1)
def _bags(bags: int, length: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the first ``count`` of ``length`` table rows of each bag, and the offset of each bag among them."""
    with torch.inference_mode(mode=False):  # normal tensors, which later calls can use in every mode
        starts = torch.arange(bags, dtype=torch.int32)
        members = (starts[:, None] * length + torch.arange(count, dtype=torch.int32)).flatten()
        return members, starts * count
