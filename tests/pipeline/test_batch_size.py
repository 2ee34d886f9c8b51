"""The batch size where none is given: from the card's memory and the number of images, the same in every call."""

import pytest
import torch

from aimamba.pipeline import Pipeline, batch_size
from aimamba.pipeline.batch_size import fitting_batch_size


@pytest.fixture(scope="module")
def pipeline(make_aim, make_vq):
    return Pipeline(make_vq(), make_aim(), engine="plain")


@pytest.fixture
def of_rows(monkeypatch, pipeline):
    """Pretend a device of which a quarter holds so many rows: there are recordings for up to three times as many."""
    row = pipeline.prepare().init_state(1).nbytes
    return lambda rows: monkeypatch.setattr(batch_size, "_memory", lambda device: 4 * rows * row)


def test_other_devices_do_not_tell(pipeline):
    assert fitting_batch_size(pipeline, 50_000, guided=True) is None


@pytest.mark.parametrize(
    ("rows", "guided", "count", "processes", "size"),
    [
        (10_000, False, 50_000, 1, 256),
        (10_000, False, 80, 1, 80),
        (10_000, False, 1, 1, 1),
        (10_000, False, 0, 1, 1),
        (10_000, False, 300, 1, 150),  # two graphs of the same size, and not 256 and 44
        (10_000, False, 300, 4, 75),  # a batch for each
        (10_000, False, 3, 8, 1),
        (100, False, 50_000, 1, 96),  # full slices for the decoder
        (100, True, 50_000, 1, 48),
        (7, False, 50_000, 1, 7),
        (3, True, 50_000, 1, 1),
        (0, True, 50_000, 1, 1),  # a card that is too small says so itself
    ],
)
def test_what_fits(pipeline, of_rows, rows, guided, count, processes, size):
    of_rows(rows)
    assert fitting_batch_size(pipeline, count, guided=guided, processes=processes) == size


@pytest.mark.parametrize("count", [1, 17, 256, 257, 1000])
@pytest.mark.parametrize("processes", [1, 3])
def test_batches_are_as_few_and_as_equal_as_can_be(pipeline, of_rows, count, processes):
    of_rows(10_000)
    size = fitting_batch_size(pipeline, count, guided=True, processes=processes)
    batches = -(-count // size)
    assert 1 <= size <= 256
    assert batches <= processes * -(-count // (256 * processes))
    assert count - (batches - 1) * size > size - batches, "the last one is hardly smaller"


@pytest.mark.gpu
def test_a_card(make_aim, make_vq):
    pipeline = Pipeline(make_vq().cuda(), make_aim().cuda())
    assert fitting_batch_size(pipeline, 50_000, guided=True) == 256
    assert torch.cuda.memory_allocated() < 1 << 30
