"""The products of decoding: all of a layer's weights, or of a cache's tokens, are read for the sake of a few rows."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_FEWEST, _MOST = 2, 64


def linear(x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"]) -> Float[Tensor, "*b o"]:
    """Compute ``x @ weight.T``.

    With 2 to 64 rows in float32 on a CPU as ``weight @ x.T``, which reads the weights up to three times as fast
    (docs/log.md).
    """
    rows = x.shape[:-1].numel()
    if x.device.type != "cpu" or x.dtype != torch.float32 or not _FEWEST <= rows <= _MOST:
        return F.linear(x, weight)
    return (weight @ x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)


def weighted_sums(weights: Float[Tensor, "b h t"], values: Float[Tensor, "b h l p"]) -> Float[Tensor, "b h p"]:
    """Add up the first T of L values, each times its weight, for every row and head.

    On a CPU as bags of an embedding table, whose sum PyTorch computes two to ten times as fast as the batched product
    of a matrix with one row (docs/log.md).

    Args:
        weights: In the dtype of ``values``.
        values: Contiguous.
    """
    places = weights.shape[-1]
    if values.device.type != "cpu":
        return (weights[:, :, None] @ values[:, :, :places]).squeeze(2)
    bags, (length, width) = weights.shape[0] * weights.shape[1], values.shape[2:]
    members, starts = _bags(bags, length, places)
    sums = F.embedding_bag(members, values.view(-1, width), starts, mode="sum", per_sample_weights=weights.reshape(-1))
    return sums.view(*weights.shape[:2], width)


@lru_cache(maxsize=1)  # all blocks ask for the same
def _bags(bags: int, length: int, places: int) -> tuple[Tensor, Tensor]:
    """The first ``places`` of ``length`` rows of each bag in a table, and where each bag begins among them."""
    with torch.inference_mode(mode=False):  # whoever asks first, anyone may use them
        starts = torch.arange(bags, dtype=torch.int32)
        members = (starts[:, None] * length + torch.arange(places, dtype=torch.int32)).flatten()
        return members, starts * places
