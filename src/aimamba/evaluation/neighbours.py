"""Nearest neighbours by cosine: 5-NN accuracy of samples, and whether they are copies of training images.

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
"""Neighbours that vote on the class of an image."""

CLOSE = 0.05
"""Share of held-out images that count as close to the training images."""

_BLOCK = 1000  # queries compared with all keys at once


class Nearest(NamedTuple):
    """The k nearest keys of each query, nearest first.

    Attributes:
        similarities: Cosines, (n, k).
        indices: Indices of the keys, (n, k).
    """

    similarities: Tensor
    indices: Tensor


def nearest(queries: Float[Tensor, "n d"], keys: Float[Tensor, "m d"], k: int, *, same: bool = False) -> Nearest:
    """Find the nearest keys by cosine.

    Args:
        queries: Vectors whose neighbours to find.
        keys: Vectors to search.
        k: Neighbours of each query.
        same: Queries and keys are the same set; a vector is not its own neighbour.

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


class KnnAccuracy(NamedTuple):
    """5-NN accuracy: shares of images in [0, 1] whose nearest reference images have the right class.

    Attributes:
        unanimous: Share of images for which all five have it.
        majority: Share of images for which at least three have it.
        per_class: ``unanimous`` of each class, by the name of the class.
    """

    unanimous: float
    majority: float
    per_class: dict[str, float]


def knn_accuracy(
    queries: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    reference: Float[Tensor, "m d"],
    reference_labels: Int64[Tensor, " m"],
    class_names: Sequence[str],
    *,
    same: bool = False,
) -> KnnAccuracy:
    """Return the 5-NN accuracy of images with known classes.

    Args:
        queries: Features of the images.
        labels: Class that each image should have.
        reference: Features of real images that the model was not trained on.
        reference_labels: Class of each reference image.
        class_names: Names of the classes.
        same: The images are the reference itself, and each is classified by the others. This is an upper bound.

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
    return KnnAccuracy(float(known.double().mean()), float((votes > VOTERS // 2).double().mean()), per_class)


class Copying(NamedTuple):
    """Whether samples lie closer to the training images than held-out images do.

    Attributes:
        similarity: Median cosine of a sample with its nearest training image.
        similarity_held_out: Median cosine of a held-out image with its nearest training image.
        closer: Share of the samples that are closer to a training image than 95 % of the held-out images are. About
            0.05 if no sample is a copy.
    """

    similarity: float
    similarity_held_out: float
    closer: float


def copying(samples: Float[Tensor, " n"], held_out: Float[Tensor, " m"]) -> Copying:
    """Compare samples with held-out images by the cosines with their nearest training images."""
    line = held_out.double().quantile(1 - CLOSE)
    closer = (samples.double() > line).double().mean()
    return Copying(float(samples.median()), float(held_out.median()), float(closer))
