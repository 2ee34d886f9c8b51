"""Precision and recall of a set of images (Kynkäänniemi et al., arXiv 1904.06991, eq. 1), as ADM's evaluator does it.

A set's manifold is the union of balls around its vectors, each reaching to the k-th nearest other vector. Precision is
the share of samples in the manifold of the reference; recall is the share of the reference in that of the samples.
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
"""Progress callback: called with the number of rows finished since the last call."""


class PrecisionRecall(NamedTuple):
    """Precision and recall, shares in [0, 1]."""

    precision: float
    recall: float


def check_neighbours(samples: int, reference: int, neighbours: int = NEIGHBOURS) -> None:
    """Check that there are enough images for precision and recall.

    Raises:
        DataError: A set has as many as neighbours, or fewer.
    """
    if min(samples, reference) <= neighbours:
        raise DataError(
            f"precision and recall with {neighbours} neighbours need more than {neighbours} images in each set, "
            f"got {samples} samples and {reference} in the reference"
        )


def precision_recall(
    samples: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    *,
    neighbours: int = NEIGHBOURS,
    half: bool = False,
    advance: Advance = lambda _: None,
) -> PrecisionRecall:
    """Return precision and recall of samples against a reference.

    Both depend on the sizes of the sets: compare only results of equal sizes.

    Args:
        samples: Features of the samples.
        reference: Features of real images.
        neighbours: k; a vector is not its own neighbour.
        half: Round as ADM's evaluator does: squared distances in float16, where they are finite.
        advance: Progress callback; 2 m + n rows in all.

    Raises:
        DataError: A set has k vectors or fewer.
    """
    check_neighbours(len(samples), len(reference), neighbours)
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
    """Return squared Euclidean distances of all pairs, as ``|u|^2 - 2 u.v + |v|^2`` clamped at 0.

    With ``half``, vectors, norms, products and sums are rounded to float16, unless a result is not finite: then the
    whole block stays in float32. (Sums are accumulated in float32 and rounded once, so a GPU's last digit may differ.)
    """
    if half:
        u, v = one.half().float(), other.half().float()
        norms = [(rows * rows).half().float().sum(dim=1).half() for rows in (u, v)]
        rounded = (norms[0][:, None] - 2 * (u @ v.T).half() + norms[1]).clamp(min=0)
        if rounded.isfinite().all():
            return rounded.float()
    return (one.square().sum(dim=1)[:, None] - 2 * (one @ other.T) + other.square().sum(dim=1)).clamp(min=0)


def _radii(vectors: Tensor, neighbours: int, half: bool, advance: Advance) -> Float[Tensor, " n"]:
    """Return the squared distance of every vector to its k-th nearest other vector."""
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
