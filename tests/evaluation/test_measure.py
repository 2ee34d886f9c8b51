"""From images to features, and the cache."""

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from aimamba.errors import DataError
from aimamba.evaluation.features import Features
from aimamba.evaluation.inception_score import InceptionScore
from aimamba.evaluation.measure import measure, measure_cached, measure_set, to_channels_first
from aimamba.evaluation.sources import open_source


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path, pixels):
    np.savez(tmp_path / "s.npz", arr_0=pixels(10))
    return str(tmp_path / "s.npz")


def test_features_of_all_batches_are_collected(file, pixels, plain):
    found = measure(open_source(file), plain(logits=True))
    whole = plain(logits=True)(to_channels_first(pixels(10)))
    assert torch.equal(found.vectors, whole.vectors)
    assert_allclose(found.gaussian.covariance, np.cov(whole.vectors, rowvar=False), rtol=1e-9)
    assert_allclose(found.spatial.mean, whole.spatial.double().mean(dim=0), rtol=1e-9)
    assert_allclose(found.spatial.covariance, np.cov(whole.spatial, rowvar=False), rtol=1e-9)
    score = InceptionScore()
    score.add(whole.logits)
    assert found.inception_score == pytest.approx(score.value())


def test_channels_come_first(pixels):
    images = pixels(2)
    assert to_channels_first(images)[1, 2, 3, 4] == images[1, 3, 4, 2]


def test_features_are_cached(file, plain, cache):
    network = plain(logits=True)
    first = measure_cached(open_source(file), network)
    again = measure_cached(open_source(file), network)
    assert network.seen == 10
    assert torch.equal(first.vectors, again.vectors)
    assert torch.equal(first.spatial.covariance, again.spatial.covariance)
    assert first.inception_score == again.inception_score
    [about] = cache.glob("features/*/provenance.json")
    assert json.loads(about.read_text())["network"] == {"network": "plain"}
    (about.parent / "vectors.npy").write_bytes(b"damaged")
    assert torch.equal(measure_cached(open_source(file), network).vectors, first.vectors)
    assert network.seen == 20
    measure_cached(open_source(file), plain("other"))
    assert len(list(cache.glob("features/*"))) == 2


@pytest.mark.parametrize("name", ["vectors.npy", "spatial_mean.npy", "spatial_covariance.npy"])
def test_a_flipped_bit_in_the_cache_is_noticed(file, plain, cache, name):
    network = plain()
    first = measure_cached(open_source(file), network)
    [path] = cache.glob(f"features/*/{name}")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    again = measure_cached(open_source(file), network)
    assert network.seen == 20
    assert torch.equal(first.vectors, again.vectors)
    assert torch.equal(first.spatial.covariance, again.spatial.covariance)


def test_a_cache_that_cannot_be_written_is_ignored(file, plain, cache):
    cache.write_text("a file is in the way")
    assert len(measure_cached(open_source(file), plain()).vectors) == 10


def test_stored_statistics_replace_those_of_inception(tmp_path, pixels, plain):
    stored = {"mu": np.arange(6.0), "sigma": np.eye(6), "mu_s": np.ones(4), "sigma_s": np.eye(4)}
    np.savez(tmp_path / "both.npz", arr_0=pixels(5), **stored)
    np.savez(tmp_path / "alone.npz", mu=stored["mu"], sigma=stored["sigma"])
    both, alone = (open_source(str(tmp_path / f"{name}.npz")) for name in ("both", "alone"))
    found = measure_set(both, plain("inception"), keep=True)
    assert found.gaussian.mean.tolist() == list(range(6))
    assert found.spatial.mean.tolist() == [1] * 4
    assert found.vectors.shape == (5, 6)
    other = measure_set(both, plain(), keep=True)
    assert_allclose(other.gaussian.mean, other.vectors.double().mean(dim=0))
    assert measure_set(alone, plain("inception"), keep=True).vectors.shape == (0, 6)
    with pytest.raises(DataError, match="holds Inception's statistics and no images, which plain cannot use"):
        measure_set(alone, plain(), keep=True)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images(tmp_path, pixels, plain, count):
    np.savez(tmp_path / "s.npz", arr_0=pixels(count))
    with pytest.raises(DataError, match=rf"s\.npz: too few images to measure a set, got {count}; give at least 2"):
        measure(open_source(str(tmp_path / "s.npz")), plain())


def test_nan_features_are_refused(file, plain):
    class Broken(plain):
        def __call__(self, images):
            return Features(torch.full((len(images), 6), torch.nan))

    with pytest.raises(DataError, match="features of 3 of 3 images are NaN"):
        measure(open_source(file), Broken())
