"""Nearest neighbours by cosine: whether a sample is recognised as what it should be, and whether it is a copy.

Shape letters: n queries, m keys, k neighbours of each.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from aimamba.errors import DataError

VOTERS = 5
CLOSE = 0.05

_BLOCK = 1000  # queries compared with all keys at once


class Nearest(NamedTuple):
    """The k nearest keys of each query, nearest first.

    Attributes:
        similarities: Cosines, (n, k).
        indices: Of the keys, (n, k).
    """

    similarities: Tensor
    indices: Tensor


def nearest(queries: Float[Tensor, "n d"], keys: Float[Tensor, "m d"], k: int, *, same: bool = False) -> Nearest:
    """Find the nearest keys by cosine.

    Args:
        queries: Whose neighbours are looked for.
        keys: Among which.
        k: How many.
        same: The two are one set, in which nothing is its own neighbour.

    Raises:
        DataError: There are fewer than k keys to choose from.
    """
    if len(keys) - same < k:
        raise DataError(f"{k} nearest neighbours need at least {k + same} images to choose from, got {len(keys)}")
    directions = F.normalize(keys, dim=1)
    found = []
    for start in range(0, len(queries), _BLOCK):
        cosines = F.normalize(queries[start : start + _BLOCK], dim=1) @ directions.T
        if same:
            rows = torch.arange(len(cosines), device=cosines.device)
            cosines[rows, start + rows] = -torch.inf
        found.append(cosines.topk(k, dim=1))
    return Nearest(torch.cat([near.values for near in found]), torch.cat([near.indices for near in found]))


class Recognition(NamedTuple):
    """Shares of images, in [0, 1].

    Attributes:
        share: Those whose five nearest reference images all are of the class that was asked for.
        majority: Those of whose five at least three are.
        per_class: ``share`` of each class by its name.
    """

    share: float
    majority: float
    per_class: dict[str, float]


def recognition(
    queries: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    reference: Float[Tensor, "m d"],
    reference_labels: Int64[Tensor, " m"],
    class_names: Sequence[str],
    *,
    same: bool = False,
) -> Recognition:
    """Tell how many images are recognised: their five nearest real images agree on their class.

    Args:
        queries: Features of the images.
        labels: Class of each.
        reference: Features of real images that no model was trained on.
        reference_labels: Class of each.
        class_names: Of the labels.
        same: The reference judges itself, each image by the others: the most that can be hoped for.

    Raises:
        DataError: The reference is too small.
    """
    near = nearest(queries, reference, VOTERS, same=same)
    votes = (reference_labels[near.indices.cpu()] == labels[:, None]).sum(dim=1)
    known = votes == VOTERS
    per_class = {
        name: float(known[labels == label].double().mean())
        for label, name in enumerate(class_names)
        if bool((labels == label).any())
    }
    return Recognition(float(known.double().mean()), float((votes > VOTERS // 2).double().mean()), per_class)


class Copying(NamedTuple):
    """Whether images lie nearer to the training set than unseen real ones do.

    Attributes:
        similarity: Median cosine of a sample with its nearest training image.
        similarity_held_out: The same of a held-out image.
        closer: Share of the samples that are nearer to a training image than all but the nearest 5 % of the held-out
            images are. About 0.05 where nothing is copied.
    """

    similarity: float
    similarity_held_out: float
    closer: float


def copying(samples: Float[Tensor, " n"], held_out: Float[Tensor, " m"]) -> Copying:
    """Compare the cosines of samples and of held-out images with their nearest training images."""
    line = held_out.double().quantile(1 - CLOSE)
    closer = (samples.double() > line).double().mean()
    return Copying(float(samples.median()), float(held_out.median()), float(closer))
