"""A model that memorised its training images is caught, one that did not is clean."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aimamba.errors import DataError
from aimamba.evaluation.codes import encode_source
from aimamba.evaluation.compare import compare
from aimamba.evaluation.sources import ModelSource, open_source
from aimamba.evaluation.summary import summary
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline


@pytest.fixture
def sets(tmp_path, pixels, monkeypatch):
    """Five training images and forty held-out ones."""
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "cache"))
    for name, count in (("train", 5), ("unseen", 40)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels(count, seed=count))
    return open_source(str(tmp_path / "train.npz")), open_source(str(tmp_path / "unseen.npz"))


def memorised(pipeline, train):
    """Train the generator until each class is one training image."""
    labels = torch.arange(5)
    codes = encode_source(train, pipeline)[:, 0].long()
    generator = pipeline.generator.train()
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    for _ in range(150):
        loss = F.cross_entropy(generator(codes[:, :-1], labels).flatten(0, 1), codes.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    generator.eval()
    return float(loss.detach())


def samples_of(pipeline, temperature):
    return ModelSource("model", pipeline, np.arange(20) % 5, SamplingConfig(temperature=temperature), 8)


def test_a_generator_that_memorises_is_caught(sets, plain, make_vq, make_aim):
    train, unseen = sets
    pipeline = Pipeline(make_vq(), make_aim(num_tokens=16))
    assert memorised(pipeline, train) < 0.1
    found = compare(samples_of(pipeline, 0.0), unseen, plain(), train=train).metrics
    codes = found.neighbours.codes
    assert (codes.equal, codes.differing) == (1.0, 0.0)
    assert codes.equal_held_out == 0
    assert codes.differing_held_out > 0
    assert found.neighbours.copying.closer == 1.0
    assert found.neighbours.copying.similarity > 0.999
    lines = dict(summary("plain", found))
    assert lines[f"codes of {train.name}"].startswith("100.0% of samples have all codes of a training image, ")
    assert lines[f"plain closer to {train.name}"].endswith("compared with reconstructions")
    assert found.to_dict()["neighbours"]["codes"]["equal"] == 1.0


def test_a_generator_that_does_not_is_clean(sets, plain, make_vq, make_aim):
    train, unseen = sets
    pipeline = Pipeline(make_vq(), make_aim(num_tokens=16))
    codes = compare(samples_of(pipeline, 1.0), unseen, plain(), train=train).metrics.neighbours.codes
    assert codes.equal == codes.equal_held_out == 0
    assert codes.differing > 8


def test_mirrored_copies_are_found(sets, plain, make_vq, make_aim, tmp_path, pixels):
    np.savez(tmp_path / "mirrored.npz", arr_0=pixels(5, seed=5)[:, :, ::-1])
    pipeline = Pipeline(make_vq(), make_aim(num_tokens=16))
    memorised(pipeline, open_source(str(tmp_path / "mirrored.npz")))
    train, unseen = sets
    found = compare(samples_of(pipeline, 0.0), unseen, plain(), train=train).metrics
    assert found.neighbours.codes.equal == 1.0


def test_without_a_model_the_summary_says_what_was_compared(sets, plain):
    train, unseen = sets
    found = compare(train, unseen, plain(), train=train).metrics
    assert found.neighbours.codes is None
    assert found.to_dict()["neighbours"]["compared"] == "originals"
    [line] = [value for name, value in summary("plain", found) if "closer to" in name]
    assert "compared with originals: blurred copies are missed, --model finds them" in line


def test_a_reference_without_images(sets, plain, tmp_path):
    np.savez(tmp_path / "alone.npz", mu=np.zeros(6), sigma=np.eye(6))
    with pytest.raises(DataError, match=r"alone\.npz: the search for copies needs its images.*--train none"):
        compare(sets[1], open_source(str(tmp_path / "alone.npz")), plain("inception", logits=True), train=sets[0])
