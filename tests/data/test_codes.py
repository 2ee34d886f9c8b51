"""Images as codes."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aimamba.data.codes import CodeSet, encode_images, view_names
from aimamba.data.order import ShuffledOrder
from aimamba.data.sheets import to_float
from aimamba.errors import ConfigError


class Noise(NamedTuple):
    """Images of noise; a random view would be black."""

    amount: int
    size: int = 8
    class_names: tuple[str, ...] = ("even", "odd")

    @property
    def labels(self):
        return np.arange(self.amount, dtype=np.int64) % 2

    def __len__(self):
        return self.amount

    def image(self, index, rng=None):
        if rng is not None:
            return np.zeros((self.size, self.size, 3), np.uint8)
        return np.random.default_rng(index).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tokenizer(make_vq):
    return make_vq()


def encoded(tokenizer, image):
    """Codes of one image by itself."""
    image = to_float(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None])
    return tokenizer.encode(image.to(tokenizer.codebook.dtype)).flatten().tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_centre_view_of_every_image(tokenizer, batch_size):
    images = Noise(7)
    codes = encode_images(tokenizer, images, batch_size=batch_size)
    assert (codes.shards[0].shape, codes.shards[0].dtype) == ((7, 1, 16), np.uint16)
    assert codes.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert len(codes) == 7
    for index in range(7):
        assert codes.shards[0][index, 0].tolist() == encoded(tokenizer, images.image(index))


def test_the_mirror_image_is_a_second_view(tokenizer):
    images = Noise(5)
    codes = encode_images(tokenizer, images, views="center-flip", batch_size=2).shards[0]
    assert codes.shape == (5, 2, 16)
    for index in range(5):
        image = images.image(index)
        assert codes[index, 0].tolist() == encoded(tokenizer, image)
        assert codes[index, 1].tolist() == encoded(tokenizer, image[:, ::-1])
    assert (codes[:, 0] != codes[:, 1]).any()


def test_moved_views_are_the_same_in_every_batch(tokenizer):
    images = Noise(5)
    codes = encode_images(tokenizer, images, views="moved-3", batch_size=2).shards[0]
    assert view_names("moved-3") == ("center", "moved-1", "moved-2", "moved-3")
    assert codes.shape == (5, 4, 16)
    assert np.array_equal(codes, encode_images(tokenizer, images, views="moved-3", batch_size=5).shards[0])
    assert np.array_equal(codes[:, 0], encode_images(tokenizer, images).shards[0][:, 0])
    assert len({tuple(view) for image in codes for view in image.tolist()}) > 15  # nearly all differ


@pytest.mark.parametrize("views", ["moved", "moved-0", "moved-65", "moved--1", "moved-\u0663", "centre"])
def test_unknown_views_are_refused(views):
    with pytest.raises(ConfigError, match=r"^views must be one of center, center-flip, ten-crop, moved-N"):
        view_names(views)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_tokenizer_of_another_dtype(make_vq, dtype):
    codes = encode_images(make_vq(dtype=dtype), Noise(2)).shards[0]
    assert codes.max() < 24


def test_progress(tokenizer):
    seen = []
    encode_images(tokenizer, Noise(7), batch_size=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_codes_up_to_two_bytes(make_vq):
    tokenizer = make_vq(codebook_size=1 << 16)
    tokenizer.encode = lambda images: torch.full((len(images), 4, 4), 65535)
    codes = encode_images(tokenizer, Noise(2))
    assert (codes.shards[0] == 65535).all()
    batch = next(codes.batches(batch_size=2, seed=0))
    assert (batch.codes == 65535).all()
    with pytest.raises(ConfigError, match="at most 65536 codes, got 65537"):
        encode_images(make_vq(codebook_size=(1 << 16) + 1), Noise(2))


@pytest.fixture(scope="module")
def code_set():
    """Five images in three views; every code says which."""
    image, view, place = np.meshgrid(range(5), range(3), range(4), indexing="ij")
    return CodeSet((100 * image + 10 * view + place).astype(np.uint16), np.arange(5, dtype=np.int64) + 50)


def examples(code_set, count, *, batch_size=1, seed=0, start=0):
    """(image, view) of the first ``count`` examples, each seen to be whole and with its label."""
    found = []
    for batch in code_set.batches(batch_size=batch_size, seed=seed, start=start):
        assert (batch.codes.dtype, batch.labels.dtype) == (torch.int64, torch.int64)
        assert (batch.codes.shape, batch.labels.shape) == ((batch_size, 4), (batch_size,))
        assert torch.equal(batch.codes - batch.codes[:, :1], torch.arange(4).expand(batch_size, 4))
        assert torch.equal(batch.codes[:, 0] // 100 + 50, batch.labels)
        found += [(first // 100, first // 10 % 10) for first in batch.codes[:, 0].tolist()]
        if len(found) >= count:
            return found[:count]
    raise AssertionError("batches never end")


def test_the_order_is_that_of_the_images(code_set):
    order = ShuffledOrder(5, 9)
    assert [image for image, _ in examples(code_set, 23, seed=9)] == [order.index(place) for place in range(23)]


def test_all_views_come_about_as_often(code_set):
    views = [view for _, view in examples(code_set, 3000, batch_size=50)]
    assert all(900 < views.count(view) < 1100 for view in range(3))


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 2**32))
def test_an_example_depends_on_seed_and_position_alone(code_set, batch_size, start, seed):
    whole = examples(code_set, 60, seed=seed)
    assert examples(code_set, 20, batch_size=batch_size, seed=seed, start=start) == whole[start : start + 20]


def test_seeds_differ(code_set):
    assert examples(code_set, 20, seed=0) != examples(code_set, 20, seed=1)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_slices_of_ranks_are_the_batches_of_one_process(code_set, ranks):
    codes = code_set
    whole = codes.batches(batch_size=8, seed=3, start=16)
    share = 8 // ranks
    slices = [codes.batches(batch_size=share, seed=3, start=16 + rank * share, stride=8) for rank in range(ranks)]
    for _ in range(3):
        expected, found = next(whole), [next(each) for each in slices]
        assert torch.equal(torch.cat([each.codes for each in found]), expected.codes)
        assert torch.equal(torch.cat([each.labels for each in found]), expected.labels)
