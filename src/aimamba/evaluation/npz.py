"""Inception's statistics as ``.npz`` files hold them beside their images."""

from typing import NamedTuple

import torch

from aimamba.data.npz import NpzImages
from aimamba.evaluation.sources import Source
from aimamba.evaluation.statistics import Gaussian


class StoredStatistics(NamedTuple):
    """Inception's statistics of the set that the images of a file belong to.

    Attributes:
        pooled: Of ``pool_3``.
        spatial: Of seven channels of ``mixed_6/conv``, where they are stored.
    """

    pooled: Gaussian
    spatial: Gaussian | None


def stored_statistics(source: Source) -> StoredStatistics | None:
    """Return the statistics that came with the images of a file, if there are any."""
    stored = source.statistics if isinstance(source, NpzImages) else None
    if stored is None:
        return None
    spatial = None
    if stored.spatial_mean is not None and stored.spatial_covariance is not None:
        spatial = Gaussian(torch.from_numpy(stored.spatial_mean), torch.from_numpy(stored.spatial_covariance))
    return StoredStatistics(Gaussian(torch.from_numpy(stored.mean), torch.from_numpy(stored.covariance)), spatial)
