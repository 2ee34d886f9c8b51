"""The kernel distance between two sets of vectors; between Inception's features it is KID (arXiv 1801.01401)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.errors import DataError

SUBSETS, SUBSET_SIZE = 100, 1000
"""Those of the KID paper's code and of torch-fidelity."""


class KernelDistance(NamedTuple):
    """Mean over subsets, standard deviation (n below the line, as torch-fidelity's), and vectors in a subset."""

    mean: float
    std: float
    subset_size: int


def kernel_distance(
    one: Float[Tensor, "n d"],
    other: Float[Tensor, "m d"],
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
    advance: Callable[[int], object] = lambda _: None,
) -> KernelDistance:
    """Give the squared maximum mean discrepancy with the kernel ``(x . y / D + 1)^3``, unbiased.

    Unlike the Fréchet distance its mean does not depend on how many images there are; it may fall a little below 0.

    Args:
        one: Features of a set.
        other: Features of another.
        subsets: How many pairs of subsets are drawn, without repetition inside each.
        subset_size: Vectors in each; at most half of the smaller set, as whole sets would not differ.
        seed: Of the draw.
        advance: Progress, subset by subset.

    Raises:
        DataError: A set has fewer than two vectors.
    """
    fewest = min(len(one), len(other))
    if fewest < 2:
        raise DataError(f"a kernel distance needs at least 2 images in each set, got {len(one)} and {len(other)}")
    size = min(subset_size, max(2, fewest // 2))
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(subsets):
        x, y = (rows[torch.randperm(len(rows), generator=generator)[:size].to(rows.device)] for rows in (one, other))
        distances.append(squared_discrepancy(x, y))
        advance(1)
    values = torch.tensor(distances, dtype=torch.float64)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)), size)


def squared_discrepancy(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Unbiased estimate from all pairs (Gretton et al. 2012, eq. 3)."""
    n, m = len(x), len(y)
    within = (_kernel(x, x).sum() - _diagonal(x)) / (n * (n - 1)) + (_kernel(y, y).sum() - _diagonal(y)) / (m * (m - 1))
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return ((x @ y.T).cpu().double() / x.shape[1] + 1) ** 3


def _diagonal(x: Tensor) -> Tensor:
    return ((x * x).sum(dim=1).cpu().double() / x.shape[1] + 1).pow(3).sum()
