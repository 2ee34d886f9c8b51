"""Precision and recall of a set of images (Kynkäänniemi et al., arXiv 1904.06991, eq. 1), as ADM's evaluator does it.

A set's manifold is the union of balls about its vectors, each reaching to the k-th nearest other vector. Precision is
the share of samples in the manifold of the reference, recall the share of the reference in that of the samples.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.errors import DataError

NEIGHBOURS = 3
_ROWS, _COLUMNS = 2000, 10_000  # of a block of distances

Advance = Callable[[int], object]
"""Told how many rows are done."""


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(
    samples: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    *,
    neighbours: int = NEIGHBOURS,
    half: bool = False,
    advance: Advance = lambda _: None,
) -> PrecisionRecall:
    """Measure samples against a reference; both sizes matter, so keep them when comparing.

    Args:
        samples: Features.
        reference: Features of real images.
        neighbours: k; a vector is not its own neighbour.
        half: Round as ADM's evaluator, which computes squared distances in float16 where they are finite.
        advance: Progress; 2 m + n rows in all.

    Raises:
        DataError: A set has not more than k vectors.
    """
    if min(len(samples), len(reference)) <= neighbours:
        raise DataError(
            f"precision and recall with {neighbours} neighbours need more than {neighbours} images in each set, "
            f"got {len(samples)} samples and {len(reference)} in the reference"
        )
    reach_of_reference = _radii(reference, neighbours, half, advance)
    reach_of_samples = _radii(samples, neighbours, half, advance)
    covered = []
    inside = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    for start in range(0, len(reference), _ROWS):
        rows = slice(start, start + _ROWS)
        found = torch.zeros(len(reference[rows]), dtype=torch.bool, device=samples.device)
        for first in range(0, len(samples), _COLUMNS):
            columns = slice(first, first + _COLUMNS)
            distances = squared_distances(reference[rows], samples[columns], half=half)
            found |= (distances <= reach_of_samples[columns]).any(dim=1)
            inside[columns] |= (distances <= reach_of_reference[rows, None]).any(dim=0)
        covered.append(found)
        advance(len(found))
    return PrecisionRecall(float(inside.double().mean()), float(torch.cat(covered).double().mean()))


def squared_distances(
    one: Float[Tensor, "n d"], other: Float[Tensor, "m d"], *, half: bool = False
) -> Float[Tensor, "n m"]:
    """Squared Euclidean distances of all pairs, by ``|u|^2 - 2 u.v + |v|^2``, never below 0.

    With ``half`` vectors, norms, products and sums are rounded to float16, and float32 is kept where any result is not
    finite. (Sums are gathered in float32 and rounded once, so a GPU's last digit may differ.)
    """
    if half:
        u, v = one.half().float(), other.half().float()
        norms = [(rows * rows).half().float().sum(dim=1).half() for rows in (u, v)]
        rounded = (norms[0][:, None] - 2 * (u @ v.T).half() + norms[1]).clamp(min=0)
        if rounded.isfinite().all():
            return rounded.float()
    return (one.square().sum(dim=1)[:, None] - 2 * (one @ other.T) + other.square().sum(dim=1)).clamp(min=0)


def _radii(vectors: Tensor, neighbours: int, half: bool, advance: Advance) -> Float[Tensor, " n"]:
    """Squared distance of every vector from its k-th nearest other one."""
    radii = []
    for rows in vectors.split(_ROWS):
        near = torch.cat(
            [
                squared_distances(rows, columns, half=half).topk(min(neighbours + 1, len(columns)), largest=False)[0]
                for columns in vectors.split(_COLUMNS)
            ],
            dim=1,
        )
        radii.append(near.topk(neighbours + 1, largest=False)[0][:, -1])  # the nearest is the vector itself
        advance(len(rows))
    return torch.cat(radii)
