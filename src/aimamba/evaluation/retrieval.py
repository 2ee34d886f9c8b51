"""Whether the right one among many candidates is the most similar: recall at 1 and at 5."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.errors import DataError
from aimamba.seeds import seeded

CANDIDATES = 100
"""The right one and 99 others, so that chance finds it once in a hundred times."""


class Retrieval(NamedTuple):
    """How often the right candidate is found.

    Attributes:
        first: Share of the queries whose right candidate is the most similar one: recall at 1.
        fifth: Share of those whose right candidate is among the five most similar: recall at 5.
        candidates: Candidates of a query, on average; by chance ``first`` would be one divided by it.
        queries: Number of queries.
    """

    first: float
    fifth: float
    candidates: float
    queries: int


def retrieval(
    similarity: Float[Tensor, "n s"], right: Int[Tensor, " n"], *, candidates: int = CANDIDATES, seed: int = 0
) -> Retrieval:
    """Compare the right candidate of every query with others that are drawn at random.

    Where others are as similar as the right one, all orders are equally likely, so queries that know nothing find it
    as often as chance does.

    Args:
        similarity: Of every query with everything that may be a candidate; minus infinity where it may not.
        right: Which one is right for each query.
        candidates: How many there are for each query, the right one included; fewer where there are not as many.
        seed: Of the choice of the others.

    Raises:
        DataError: There are no queries, a right one is no candidate, or a query has nothing but the right one.
    """
    generator, first, fifth, among = seeded(seed), 0.0, 0.0, 0
    for row, own in zip(similarity, right.tolist(), strict=True):
        possible = row > -torch.inf
        if not possible[own]:
            raise DataError("what a caption describes is not among the candidates")
        possible[own] = False
        others = possible.nonzero().squeeze(1)
        others = others[torch.randperm(len(others), generator=generator)[: candidates - 1]]
        if not len(others):
            raise DataError("retrieval needs at least two different images with captions to choose from")
        above, equal = (int(found.sum()) for found in (row[others] > row[own], row[others] == row[own]))
        first += min(max((1 - above) / (equal + 1), 0.0), 1.0)
        fifth += min(max((5 - above) / (equal + 1), 0.0), 1.0)
        among += 1 + len(others)
    count = len(right)
    if not count:
        raise DataError("there is nothing to retrieve: no image has a caption")
    return Retrieval(first / count, fifth / count, among / count, count)


def cosine_to_subjects(
    queries: Float[Tensor, "n d"], images: Float[Tensor, "m d"], subjects: Int[Tensor, " m"], count: int
) -> Float[Tensor, "n s"]:
    """Return the cosine of every query with the nearest image of each subject; minus infinity where it has none.

    Args:
        queries: Features of the queries.
        images: Features of the images.
        subjects: What is on each image.
        count: Number of subjects, s.
    """
    unit, other = (torch.nn.functional.normalize(vectors, dim=1) for vectors in (queries, images))
    nearest = unit.new_full((len(queries), count), -torch.inf)
    return nearest.scatter_reduce(1, subjects.expand(len(queries), -1), unit @ other.T, "amax")
