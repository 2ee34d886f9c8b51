"""Nearest entry of an L2-normalised codebook.

Shape letters: M vectors, V codebook size, E code width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_SCORES_AT_ONCE = 1 << 24  # 64 MB of float32


@torch.no_grad()
def nearest_code(
    vectors: Float[Tensor, "m e"], codebook: Float[Tensor, "v e"], *, scores_at_once: int = _SCORES_AT_ONCE
) -> Int[Tensor, " m"]:
    """Find for each vector the codebook entry at the smallest distance.

    Both sides must have unit rows: the nearest entry is then the one with the largest inner product. Vectors are
    compared in slices, so that no more than about ``scores_at_once`` products exist at a time.

    Returns:
        Indices into the codebook; the lowest one on a tie.
    """
    slices = vectors.split(max(1, scores_at_once // codebook.shape[0]))
    return torch.cat([(part @ codebook.t()).argmax(dim=-1) for part in slices])
