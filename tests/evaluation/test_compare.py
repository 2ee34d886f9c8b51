"""All metrics of a comparison, and the matching of classes."""

import numpy as np
import pytest
import torch

from aimamba.errors import DataError
from aimamba.evaluation.compare import common_labels, compare, distances
from aimamba.evaluation.features import Lite0, open_extractor
from aimamba.evaluation.frechet import frechet_distance
from aimamba.evaluation.kernel import kernel_distance
from aimamba.evaluation.manifold import precision_recall
from aimamba.evaluation.measure import measure
from aimamba.evaluation.neighbours import knn_accuracy, nearest
from aimamba.evaluation.sources import open_source
from aimamba.evaluation.summary import summary


@pytest.fixture
def npz(tmp_path, pixels):
    def write(n, seed, **more):
        path = tmp_path / f"{n}-{seed}.npz"
        np.savez(path, arr_0=pixels(n, seed), **more)
        return open_source(str(path))

    return write


def test_every_metric_equals_that_of_its_function(npz, plain):
    labels = np.arange(24) % 3
    samples, reference = npz(24, 0, arr_1=labels), npz(24, 1, arr_1=labels)
    found = compare(samples, reference, plain(), train=npz(9, 2))
    drawn, real, learned = (measure(source, plain()) for source in (samples, reference, npz(9, 2)))
    numbers = found.metrics.to_dict()
    assert numbers["frechet"] == pytest.approx(frechet_distance(drawn.gaussian, real.gaussian))
    assert (numbers["kid"], numbers["kid_std"], numbers["kid_subset_size"]) == kernel_distance(
        drawn.vectors, real.vectors
    )
    assert (numbers["precision"], numbers["recall"]) == precision_recall(drawn.vectors, real.vectors)
    classes = torch.from_numpy(labels)
    expected = knn_accuracy(drawn.vectors, classes, real.vectors, classes, "012")
    itself = knn_accuracy(real.vectors, classes, real.vectors, classes, "012", same=True)
    assert numbers["recognition"] == {
        "share": expected.unanimous,
        "majority": expected.majority,
        "per_class": expected.per_class,
        "reference": {"share": itself.unanimous, "majority": itself.majority},
    }
    assert torch.equal(found.nearest.indices, nearest(drawn.vectors, learned.vectors, 5).indices)
    assert numbers["neighbours"]["train"].endswith("9-2.npz")
    assert not {"fid", "sfid", "inception_score"} & numbers.keys()
    assert all(name.startswith("plain ") and "FID" not in name for name, _ in summary("plain", found.metrics))


def test_inceptions_numbers_have_their_published_names(npz, plain):
    found = compare(npz(12, 0), npz(9, 1), plain("inception", logits=True))
    assert found.nearest is None
    assert found.metrics.to_dict().keys() == {
        *("fid", "sfid", "inception_score", "kid", "kid_std", "kid_subset_size", "precision", "recall", "few_images")
    }
    names = [name for name, _ in summary("inception", found.metrics)]
    assert names[:3] == ["inception FID", "inception sFID", "inception Inception score"]
    assert "inception KID" in names


def test_a_reference_of_statistics_alone(npz, plain, tmp_path):
    np.savez(tmp_path / "alone.npz", mu=np.zeros(6), sigma=np.eye(6), mu_s=np.zeros(4), sigma_s=np.eye(4))
    found = compare(npz(12, 0), open_source(str(tmp_path / "alone.npz")), plain("inception", logits=True))
    assert found.metrics.to_dict().keys() == {"fid", "sfid", "inception_score", "few_images"}


def test_two_networks_are_refused(npz, plain):
    one, other = measure(npz(5, 0), plain()), measure(npz(5, 1), plain("another"))
    with pytest.raises(DataError, match="samples were measured with plain and the reference with another"):
        distances(one, other)


def test_images_of_two_sizes_are_refused(npz, plain):
    with pytest.raises(DataError, match=r"images of 8 x 8 pixels, avatars-16:held-out:1 of 16 x 16: .*--size"):
        compare(npz(5, 0), open_source("avatars-16:held-out:1"), plain())


class Labelled:
    def __init__(self, labels, class_names=()):
        self.labels = None if labels is None else np.array(labels)
        self.class_names = tuple(class_names)
        self.name, self.size, self.identity = "set", 8, None

    def __len__(self):
        return len(self.labels)

    def batches(self, batch_size):
        return iter(())

    def units(self, batch_size):
        return []

    def read(self, units):
        return iter(())

    def take(self, indices):
        return np.zeros((len(indices), 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("samples", "reference", "expected"),
    [
        (Labelled([0, 1, 2], "abc"), Labelled([0, 1, 2], "cab"), [1, 2, 0]),
        (Labelled([0, 2]), Labelled([0, 1, 2], "cab"), [0, 2]),
        (Labelled([0, 2]), Labelled([0, 1, 2]), [0, 2]),
        (Labelled([0, 3]), Labelled([0, 1, 2], "abc"), None),
        (Labelled([0, 1], "abcd"), Labelled([0, 1, 2]), None),
        (Labelled([0, 1], "abx"), Labelled([0, 1, 2], "abc"), None),
        (Labelled([0, 1], "Ab"), Labelled([0, 1], "Ba"), [1, 0]),
        (Labelled([0, 1]), Labelled([0, 1], ("1", "2")), None),
        (Labelled([0, 1]), Labelled([0, 1], ("0", "1")), [0, 1]),
        (Labelled(None), Labelled([0, 1]), None),
        (Labelled([0, 1]), Labelled(None), None),
    ],
)
def test_classes_are_matched_by_name_or_number(samples, reference, expected):
    found = common_labels(samples, reference)
    assert found is expected if expected is None else found.tolist() == expected


def test_lite0_distinguishes_avatars():
    """Training avatars are closer to held-out ones than one style is, and their styles are recognised."""
    network = open_extractor("lite0")
    reference = open_source("avatars-16:held-out:8")
    same = compare(open_source("avatars-16:train:4"), reference, network).metrics
    assert same.recognition.samples.majority > 0.8
    assert same.recognition.samples.unanimous <= same.recognition.samples.majority
    drawn = measure(open_source("avatars-16:train:4"), network)
    some = drawn.vectors[:4]  # one style
    real = measure(reference, network).vectors
    assert kernel_distance(some, real).mean > same.kid + 0.02


def test_lite0_magnifies_small_images():
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    magnified = Lite0(smallest_side=128)(images).vectors
    assert magnified.shape == (2, 1280)
    assert not torch.allclose(magnified, Lite0(smallest_side=40)(images).vectors, atol=0.1)
    assert Lite0().settings["smallest_side"] == 128
