"""Mean and covariance of a stream of vectors, in float64."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.errors import DataError


class Gaussian(NamedTuple):
    """Mean and covariance of a set of vectors.

    Attributes:
        mean: (D,) float64.
        covariance: (D, D) float64, divided by n - 1 as in ``numpy.cov``.
    """

    mean: Tensor
    covariance: Tensor


class Moments:
    """Running mean and scatter matrix of vectors of one length (Chan, Golub and LeVeque 1983, eq. 2.1).

    Attributes:
        count: Number of vectors so far.
    """

    def __init__(self, width: int) -> None:
        """Start without vectors.

        Args:
            width: Length of a vector, D.
        """
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, vectors: Float[Tensor, "b d"]) -> None:
        """Add vectors, from any device.

        Raises:
            DataError: A value is NaN or infinite.
        """
        check_finite(vectors)
        rows = vectors.detach().cpu().double()
        if not len(rows):
            return
        mean = rows.mean(dim=0)
        centred = rows - mean
        total = self.count + len(rows)
        apart = mean - self._mean
        self._scatter += centred.T @ centred + torch.outer(apart, apart) * (self.count * len(rows) / total)
        self._mean += apart * (len(rows) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Return mean and covariance of the vectors so far.

        Raises:
            DataError: There were fewer than two vectors.
        """
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 images, got {self.count}; give more")
        return Gaussian(self._mean.clone(), self._scatter / (self.count - 1))


def check_finite(vectors: Float[Tensor, "b d"]) -> None:
    """Check that features are finite.

    Raises:
        DataError: A feature is NaN or infinite.
    """
    bad = int((~vectors.isfinite()).any(dim=1).sum())
    if bad:
        raise DataError(
            f"features of {bad} of {len(vectors)} images are NaN or infinite; check the network's weights, "
            "and let it run in float32"
        )
