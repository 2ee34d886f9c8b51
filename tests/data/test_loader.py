import itertools
import warnings

import numpy as np
import pytest
import torch

from aimamba.data.loader import batches
from aimamba.errors import ConfigError, DataError


class Numbered:
    """Images whose first pixel tells the index, and whose second is drawn from the generator."""

    def __init__(self, count, broken=()):
        self.class_names = ("even", "odd")
        self.labels = np.arange(count, dtype=np.int64) % 2
        self.size = 2
        self.broken = broken

    def __len__(self):
        return len(self.labels)

    def image(self, index, rng=None):
        if index in self.broken:
            raise DataError(f"{index}.png: broken")
        image = np.zeros((2, 2, 3), np.uint8)
        image[0, 0] = index
        image[0, 1, 1] = 0 if rng is None else rng.integers(256)
        return image


def take(count, images, **options):
    found = list(itertools.islice(batches(images, **{"batch_size": 4, "seed": 0} | options), count))
    return torch.cat([batch.images for batch in found]), torch.cat([batch.labels for batch in found])


def indices(images):
    return images[:, 0, 0, 0].tolist()


def test_shapes_types_and_channels():
    images, labels = take(1, Numbered(10))
    assert (images.shape, images.dtype) == ((4, 3, 2, 2), torch.uint8)
    assert (labels.shape, labels.dtype) == ((4,), torch.int64)
    assert images.is_contiguous()
    assert labels.tolist() == [index % 2 for index in indices(images)]
    assert images[:, 0, 0, 1].tolist() == [0, 0, 0, 0]  # the drawn value stands in the green channel
    assert images[:, 1, 0, 1].any()


def test_each_epoch_is_a_permutation_of_its_own_and_batches_run_across_its_end():
    images, _ = take(6, Numbered(8), batch_size=3)  # 18 examples: two epochs and a bit
    order = indices(images)
    assert sorted(order[:8]) == sorted(order[8:16]) == list(range(8))
    assert order[:8] != order[8:16]


def test_the_order_never_changes():
    # Runs that are resumed after an update of this package or of numpy rely on it.
    assert indices(take(2, Numbered(8))[0]) == [7, 0, 1, 6, 5, 2, 3, 4]


def test_resume_anywhere_gives_the_same_examples():
    images, labels = take(10, Numbered(7), batch_size=3)
    for start in range(0, 20):
        resumed_images, resumed_labels = take(1, Numbered(7), batch_size=3, start=start)
        assert torch.equal(resumed_images, images[start : start + 3])
        assert torch.equal(resumed_labels, labels[start : start + 3])


def test_the_batch_size_does_not_change_the_examples():
    assert torch.equal(take(5, Numbered(7), batch_size=4)[0], take(4, Numbered(7), batch_size=5)[0])


def test_views_differ_between_epochs_and_seeds():
    images, _ = take(2, Numbered(1), batch_size=8)
    drawn = images[:, 1, 0, 1]
    assert len(drawn.unique()) > 8
    assert not torch.equal(drawn, take(2, Numbered(1), batch_size=8, seed=1)[0][:, 1, 0, 1])
    assert indices(take(2, Numbered(50))[0]) != indices(take(2, Numbered(50), seed=1)[0])


def test_large_seeds_and_positions_are_told_apart():
    firsts = [
        indices(take(1, Numbered(100), seed=seed, start=start)[0])
        for seed in (0, 2**32, 2**63)
        for start in (0, 100 * 2**33)
    ]
    assert len({tuple(first) for first in firsts}) == 6


def test_workers_give_the_same_batches_in_the_same_order():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of every fork with threads
        images, labels = take(5, Numbered(7), workers=2, start=3)
    expected_images, expected_labels = take(5, Numbered(7), start=3)
    assert torch.equal(images, expected_images)
    assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_error_keeps_its_one_line(workers):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        stream = batches(Numbered(4, broken={2}), batch_size=4, seed=0, workers=workers)
        with pytest.raises(DataError) as caught:
            next(stream)
    assert str(caught.value) == "2.png: broken"


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    take(2, Numbered(7))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"seed": -1}, {"start": -1}, {"workers": -1}])
def test_settings_out_of_range_are_refused_at_once(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        batches(Numbered(4), **{"batch_size": 4, "seed": 0} | options)


def test_no_images():
    with pytest.raises(DataError, match="no images"):
        batches(Numbered(0), batch_size=1, seed=0)
