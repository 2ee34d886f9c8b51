"""The Fréchet distance between two Gaussians; for Inception's features it is FID (arXiv 1706.08500)."""

import torch
from jaxtyping import Float64
from torch import Tensor

from aimamba.errors import DataError
from aimamba.evaluation.statistics import Gaussian


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Return ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``.

    With ``S = A A^T``, the trace of the root is the sum of the singular values of ``A1^T A2``. This avoids the root of
    a matrix that is not symmetric, and it works for singular covariances (fewer images than features), where ADM's
    evaluator may have to add 1e-6 to the diagonals.

    Raises:
        DataError: The Gaussians differ in dimension, so they come from different networks.
    """
    if one.mean.shape != other.mean.shape:
        raise DataError(
            f"features of {len(one.mean)} numbers cannot be compared with features of {len(other.mean)}: "
            "measure both sets with the same network"
        )
    apart = (one.mean - other.mean).square().sum()
    root = torch.linalg.svdvals(_factor(one.covariance).T @ _factor(other.covariance)).sum()
    return float(apart + one.covariance.trace() + other.covariance.trace() - 2 * root)


def _factor(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d r"]:
    """Return ``A`` with ``A A^T`` = the covariance; its columns are as many as the numerical rank."""
    try:
        values, vectors = torch.linalg.eigh(covariance)
    except RuntimeError:  # of features that hardly differ; this one is slower and steadier
        vectors, values, _ = torch.linalg.svd(covariance)
        values, vectors = values.flip(0), vectors.flip(1)  # ascending, as eigh has them
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()
