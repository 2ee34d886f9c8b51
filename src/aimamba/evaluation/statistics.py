"""Mean and covariance of vectors that come in a stream, in float64; parts measured apart can be put together."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.errors import DataError


class Gaussian(NamedTuple):
    """What the Fréchet distance knows of a set.

    Attributes:
        mean: (D,) float64.
        covariance: (D, D) float64, with n - 1 below the line as ``numpy.cov``.
    """

    mean: Tensor
    covariance: Tensor


class Moments:
    """Running mean and scatter of vectors of one length (Chan, Golub and LeVeque 1983, eq. 2.1).

    Attributes:
        count: How many vectors there were.
    """

    def __init__(self, width: int) -> None:
        """Begin with no vector of ``width`` numbers."""
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, vectors: Float[Tensor, "b d"]) -> None:
        """Take more vectors, from any device.

        Raises:
            DataError: A number is NaN or infinite.
        """
        check_finite(vectors)
        rows = vectors.detach().cpu().double()
        if len(rows):
            mean = rows.mean(dim=0)
            centred = rows - mean
            self._join(len(rows), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Take all vectors that ``other`` has taken, as if they had come here."""
        if other.count:
            self._join(other.count, other._mean, other._scatter)

    def gaussian(self) -> Gaussian:
        """Mean and covariance of everything so far.

        Raises:
            DataError: There were fewer than two vectors.
        """
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 images, got {self.count}; give more")
        return Gaussian(self._mean.clone(), self._scatter / (self.count - 1))

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        apart = mean - self._mean
        self._scatter += scatter + torch.outer(apart, apart) * (self.count * count / total)
        self._mean += apart * (count / total)
        self.count = total


def check_finite(vectors: Float[Tensor, "b d"]) -> None:
    """Refuse features that are no numbers.

    Raises:
        DataError: A feature is NaN or infinite.
    """
    bad = int((~vectors.isfinite()).any(dim=1).sum())
    if bad:
        raise DataError(
            f"features of {bad} of {len(vectors)} images are NaN or infinite; check the network's weights, "
            "and let it run in float32"
        )
