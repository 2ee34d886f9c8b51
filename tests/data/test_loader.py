import functools
import itertools
import multiprocessing
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from aimamba.data import loader
from aimamba.data.folder import ImageFolder
from aimamba.data.loader import batches
from aimamba.errors import ConfigError, DataError
from full_disk import in_child, mount_small_disk, no_room
from refusals import one_line_error


class Numbered:
    """Images whose first pixel tells the index, and whose second is drawn from the generator."""

    def __init__(self, count, broken=(), size=2):
        self.class_names = ("even", "odd")
        self.labels = np.arange(count, dtype=np.int64) % 2
        self.size = size
        self.broken = broken

    def __len__(self):
        return len(self.labels)

    def image(self, index, rng=None):
        if index in self.broken:
            raise DataError(f"{index}.png: broken")
        image = np.zeros((self.size, self.size, 3), np.uint8)
        image[0, 0] = index
        image[0, 1, 1] = 0 if rng is None else rng.integers(256)
        return image


class Warned(Numbered):
    """Its first image is warned of."""

    def image(self, index, rng=None):
        if index == 0:
            warnings.warn("0.png is odd", stacklevel=2)
        return super().image(index, rng)


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
    images, labels = take(5, Numbered(7), workers=2, start=3)
    expected_images, expected_labels = take(5, Numbered(7), start=3)
    assert torch.equal(images, expected_images)
    assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_error_keeps_its_one_line(workers):
    stream = batches(Numbered(4, broken={2}), batch_size=4, seed=0, workers=workers)
    with pytest.raises(DataError) as caught:
        next(stream)
    assert str(caught.value) == "2.png: broken"


class TestWorkers:
    def test_signals_are_left_to_the_parent_and_closing_ends_them(self):
        expected = take(12, Numbered(7))[0]
        stream = batches(Numbered(7), batch_size=4, seed=0, workers=2)
        seen = [next(stream).images]
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid, number)
        seen += [next(stream).images for _ in range(11)]
        assert torch.equal(torch.cat(seen), expected)
        stream.close()
        assert not any(worker.is_alive() for worker in workers)

    def test_one_that_dies_is_one_line_that_says_what_to_do(self):
        stream = batches(Numbered(7), batch_size=4, seed=0, workers=1)
        next(stream)
        [worker] = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        with one_line_error(DataError, match=r"^a process that decodes images has ended .* lower data.workers = 1"):
            for _ in range(99):
                next(stream)

    def test_no_room_in_shared_memory_is_one_line(self, tmp_path):
        def check() -> None:
            if not mount_small_disk(Path("/dev/shm")):
                (tmp_path / "skipped").touch()
                return
            with no_room(Path("/dev/shm"), left=1 << 16):
                stream = batches(Numbered(7, size=256), batch_size=4, seed=0, workers=1)
                with one_line_error(
                    DataError, match=r"^there is no room in /dev/shm .* lower data\.workers = 1, or set"
                ):
                    next(stream)
                stream.close()

        in_child(check)
        if (tmp_path / "skipped").exists():
            pytest.skip("mounting a file system is not permitted")

    @pytest.mark.parametrize(
        "text",
        [
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            "Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared memory(shm) for file "
            "</torch_7>: No space left on device (28)",
        ],
    )
    def test_torchs_words_for_it_are_known(self, text, monkeypatch):
        def fail(_):
            raise RuntimeError(text)
            yield

        monkeypatch.setattr(loader, "_started", fail)
        with one_line_error(DataError, match=r"^there is no room in /dev/shm .* --shm-size 8g"):
            next(batches(Numbered(7), batch_size=4, seed=0, workers=1))

    def test_warnings_come_from_the_parent_and_once(self):
        with pytest.warns(UserWarning, match="^0.png is odd$") as caught:
            take(6, Warned(2), workers=2)
        assert len(caught) == 1

    def test_spawned_as_on_mac_and_windows(self, tmp_path, monkeypatch):
        for name in ("cats", "dogs"):
            (tmp_path / name).mkdir()
            for number in range(12):
                image = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / name / f"{number}.png")
        folder = ImageFolder(tmp_path, size=8, crop="random", flip=True)
        expected = take(2, folder)
        spawned = functools.partial(DataLoader, multiprocessing_context="spawn")
        monkeypatch.setattr(loader, "DataLoader", spawned)
        found = take(2, folder, workers=1)
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


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
