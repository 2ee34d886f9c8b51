"""Codes of images, and the search for equal ones."""

import numpy as np
import pytest
import torch

from aimamba.errors import DataError
from aimamba.evaluation import codes
from aimamba.evaluation.codes import Reconstructions, compare_codes, differing_codes, encode_source
from aimamba.evaluation.sources import open_source
from aimamba.pipeline import Pipeline


@pytest.fixture
def pipeline(make_vq, make_aim):
    """A model of 8 pixels and 4 x 4 codes."""
    return Pipeline(make_vq(), make_aim(num_tokens=16))


@pytest.fixture
def photos(tmp_path, pixels, monkeypatch):
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "cache"))
    np.savez(tmp_path / "s.npz", arr_0=pixels(40))
    return open_source(str(tmp_path / "s.npz"))


def test_the_number_of_differing_codes():
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randint(4, (n, 9), generator=generator) for n in (40, 30))
    queries[3] = keys[7]
    found = differing_codes(queries, keys)
    assert torch.equal(found, (queries[:, None] != keys[None]).sum(dim=2).amin(dim=1))
    assert found[3] == 0


def test_more_codes_than_a_byte_counts():
    keys = torch.zeros(3, 300, dtype=torch.int32)
    assert differing_codes(keys[:1] + 1, keys).tolist() == [300]
    assert differing_codes(keys[:1], keys).tolist() == [0]


def test_shares_and_medians():
    train = torch.tensor([[0, 0, 0], [1, 1, 1]])
    samples, unseen = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0], [2, 2, 2]]), torch.tensor([[1, 1, 1], [0, 1, 2]])
    assert compare_codes(samples, unseen, train) == (0.5, 0.5, 0.5, 1.0, 3)


def test_codes_are_those_of_the_tokenizer_and_are_cached(pipeline, photos, pixels, monkeypatch):
    found = encode_source(photos, pipeline, mirrored=True)
    flipped = np.ascontiguousarray(pixels(40)[:, :, ::-1])
    for view, images in enumerate((pixels(40), flipped)):
        batch = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        assert torch.equal(found[:, view], pipeline.tokenizer.encode(batch).flatten(1).int())
    monkeypatch.setattr(codes, "_encode", None)  # no longer needed
    assert torch.equal(encode_source(photos, pipeline, mirrored=True), found)


def test_another_tokenizer_does_not_find_these_codes(pipeline, photos, make_vq, make_aim):
    found = encode_source(photos, pipeline)
    other = Pipeline(make_vq(seed=1), make_aim(num_tokens=16))
    assert not torch.equal(encode_source(photos, other), found)


def test_reconstructions(pipeline, photos, pixels):
    found = encode_source(photos, pipeline)[:, 0]
    shown = Reconstructions(photos, found, pipeline)
    whole = np.concatenate(list(shown.batches(7)))
    assert whole.shape == pixels(40).shape
    assert np.array_equal(whole[[5, 3]], pipeline.decode(found[[5, 3]].long()).permute(0, 2, 3, 1).numpy())
    assert shown.identity != photos.identity


def test_images_of_another_size(photos, make_vq, make_aim):
    with pytest.raises(DataError, match=r"has images of 8 x 8 pixels, the model's have 6: .*--train none"):
        encode_source(photos, Pipeline(make_vq(), make_aim()))
