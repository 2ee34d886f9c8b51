"""The nearest vector of an L2-normalised codebook.

Shape letters: M vectors, V codebook size, E width of a codebook vector.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_SCORES_AT_ONCE = 1 << 24  # 64 MB of float32


@torch.no_grad()
def nearest_code(
    vectors: Float[Tensor, "m e"], codebook: Float[Tensor, "v e"], *, scores_at_once: int = _SCORES_AT_ONCE
) -> Int[Tensor, " m"]:
    """Return the code of each vector: the index of the nearest codebook vector.

    All rows must have unit length, so that the nearest codebook vector has the largest inner product.

    Args:
        vectors: Vectors to quantize.
        codebook: Codebook vectors.
        scores_at_once: Inner products that may exist at a time; at least one vector is compared at a time.

    Returns:
        Indices into the codebook; the lowest one on a tie.
    """
    slices = vectors.split(max(1, scores_at_once // codebook.shape[0]))
    return torch.cat([(part @ codebook.t()).argmax(dim=-1) for part in slices])
