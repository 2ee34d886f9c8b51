"""The kernel distance between two sets of vectors; for Inception's features it is KID (arXiv 1801.01401)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.errors import DataError
from aimamba.seeds import seeded

SUBSETS, SUBSET_SIZE = 100, 1000
"""As in the KID paper's code and in torch-fidelity."""


class KernelDistance(NamedTuple):
    """A kernel distance over subsets.

    Attributes:
        mean: Mean over subsets.
        std: Standard deviation over subsets, divided by n as in torch-fidelity.
        subset_size: Vectors in a subset.
    """

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
    """Return the unbiased squared maximum mean discrepancy with the kernel ``(x . y / D + 1)^3``.

    Unlike that of the Fréchet distance, its expectation does not depend on the number of images. It can be slightly
    negative.

    Args:
        one: Features of one set.
        other: Features of the other set.
        subsets: Number of pairs of subsets, each chosen at random without replacement.
        subset_size: Vectors in a subset; at most half of the smaller set, since whole sets would not vary.
        seed: Seed of the choice.
        advance: Progress callback, called with 1 after every subset.

    Raises:
        DataError: A set has fewer than two vectors.
    """
    fewest = min(len(one), len(other))
    if fewest < 2:
        raise DataError(f"a kernel distance needs at least 2 images in each set, got {len(one)} and {len(other)}")
    size = min(subset_size, max(2, fewest // 2))
    generator = seeded(seed)
    distances = []
    for _ in range(subsets):
        x, y = (rows[torch.randperm(len(rows), generator=generator)[:size].to(rows.device)] for rows in (one, other))
        distances.append(squared_discrepancy(x, y))
        advance(1)
    values = torch.tensor(distances, dtype=torch.float64)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)), size)


def squared_discrepancy(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Return the unbiased estimate from all pairs (Gretton et al. 2012, eq. 3)."""
    n, m = len(x), len(y)
    within = (_kernel(x, x).sum() - _diagonal(x)) / (n * (n - 1)) + (_kernel(y, y).sum() - _diagonal(y)) / (m * (m - 1))
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return ((x @ y.T).cpu().double() / x.shape[1] + 1) ** 3


def _diagonal(x: Tensor) -> Tensor:
    return ((x * x).sum(dim=1).cpu().double() / x.shape[1] + 1).pow(3).sum()
