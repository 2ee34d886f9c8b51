"""Nearest images, 5-NN accuracy and copies."""

import pytest
import torch
from torch.nn import functional as F

from aimamba.errors import DataError
from aimamba.evaluation import neighbours
from aimamba.evaluation.neighbours import copying, knn_accuracy, nearest


def features(n, seed=0, d=8):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_by_cosine(monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", 4)
    queries, keys = features(10), features(30, 1)
    found = nearest(queries, keys, 3)
    cosines = F.cosine_similarity(queries[:, None], keys[None], dim=-1)
    assert torch.equal(found.indices, cosines.argsort(dim=1, descending=True)[:, :3])
    torch.testing.assert_close(found.similarities, cosines.sort(dim=1, descending=True)[0][:, :3])
    assert torch.equal(nearest(keys, keys, 1).indices[:, 0], torch.arange(30))
    itself = nearest(keys, keys, 29, same=True).indices
    assert not (itself == torch.arange(30)[:, None]).any()


def test_too_few_to_choose_from():
    with pytest.raises(DataError, match="5 nearest neighbours need at least 6 images to choose from, got 5"):
        nearest(features(5), features(5), 5, same=True)


def clusters(counts, noise=0.05):
    """Vectors about one axis for each class."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return torch.eye(8)[labels] + noise * features(len(labels)), labels


def test_all_five_must_agree():
    reference, labels = clusters([6, 6, 6])
    queries = torch.eye(8)[torch.tensor([0, 0, 1, 2])]
    found = knn_accuracy(queries, torch.tensor([0, 1, 1, 2]), reference, labels, "abc")
    assert found == (0.75, 0.75, {"a": 1.0, "b": 0.5, "c": 1.0})
    labels = labels.clone()
    labels[6:8] = 2  # two of the five or six nearest to the second axis
    mixed = knn_accuracy(queries[2:3], torch.tensor([1]), reference, labels, "abc")
    assert (mixed.unanimous, mixed.majority) == (0.0, 1.0)
    assert mixed.per_class == {"b": 0.0}


def test_a_reference_image_is_not_its_own_neighbour():
    reference, labels = clusters([6, 5])
    found = knn_accuracy(reference, labels, reference, labels, "ab", same=True)
    assert found.per_class == {"a": 1.0, "b": 0.0}  # five others of a, four of b
    assert found.majority == 1


def test_copies_are_closer_than_held_out_images():
    unseen = torch.linspace(0, 0.95, 96)
    assert copying(unseen, unseen).closer == pytest.approx(5 / 96)
    found = copying(torch.tensor([0.99, 0.3, 0.99]), unseen)
    assert found.closer == pytest.approx(2 / 3)
    assert (found.similarity, found.similarity_held_out) == (pytest.approx(0.99), pytest.approx(0.47, abs=0.01))
