"""The codes of given images are the same in every dtype of the decoder, by every way that leads to them."""

import numpy as np
import pytest
import torch

from aimamba.data.codes import encode_images
from aimamba.evaluation import codes as copies
from aimamba.evaluation import reconstruct
from aimamba.generation import SamplingConfig
from aimamba.models import VQModel
from aimamba.pipeline import Pipeline
from aimamba.pipeline.loading import open_tokenizer

DTYPES = [torch.bfloat16, torch.float16]
COUNT, SIDE = 8, 16


class Noise:
    """Random images in memory, as a set of images."""

    size, class_names, splits = SIDE, ("noise",), ("train",)

    def __init__(self, pixels):
        self.pixels = pixels
        self.labels = np.zeros(len(pixels), np.int64)

    def __len__(self):
        return len(self.pixels)

    def image(self, index, rng=None):
        return self.pixels[index]


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, make_aim, make_vq):
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    Pipeline(make_vq(channels=32), make_aim(num_tokens=64)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(saved, noise):
    return Pipeline.from_pretrained(saved).encode(noise)


def test_codes_that_do_depend_on_it_would_differ_here(saved, noise, expected):
    pipeline = Pipeline.from_pretrained(saved)
    pipeline.tokenizer.to(torch.bfloat16)
    assert not torch.equal(pipeline.encode(noise), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_a_pipeline(saved, noise, expected, dtype):
    """``complete``, ``vary``, ``inpaint``, ``score`` and the server begin with these."""
    for pipeline in (Pipeline.from_pretrained(saved, dtype=dtype), Pipeline.from_pretrained(saved).to(dtype)):
        assert (pipeline.dtype, pipeline.tokenizer.dtype) == (dtype, dtype)
        assert torch.equal(pipeline.encode(noise), expected)
        assert torch.equal(pipeline.blank_codes(), Pipeline.from_pretrained(saved).blank_codes())
        assert torch.equal(copies._encode(noise, pipeline).long(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_completion_keeps(saved, noise, expected, monkeypatch, dtype):
    pipeline, kept = Pipeline.from_pretrained(saved, dtype=dtype), []
    generate = pipeline.generate
    monkeypatch.setattr(
        pipeline, "generate", lambda *given, **named: kept.append(named["prefix"]) or generate(*given, **named)
    )
    pipeline.complete(noise, 3, 0, 1, SamplingConfig(), batch_size=COUNT)
    assert torch.equal(kept[0], expected[:, :24])


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_a_set_of_images(saved, noise, expected, dtype):
    """``aimamba encode``, and what a generator is trained on."""
    tokenizer = open_tokenizer(saved, dtype=dtype)
    [shard] = encode_images(tokenizer, Noise(noise)).shards
    assert np.array_equal(shard[:, 0], expected.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_reconstructed(saved, noise, expected, monkeypatch, dtype):
    """``aimamba reconstruct``; ``evaluate-tokenizer`` encodes in the same way."""
    decoded = []

    class Decoder(reconstruct.FastDecoder):
        def __call__(self, codes):
            decoded.append(codes.flatten())
            return super().__call__(codes)

    monkeypatch.setattr(reconstruct, "FastDecoder", Decoder)
    model = VQModel.from_pretrained(saved, dtype=dtype)
    originals = [reconstruct._Original("noise", "memory", (SIDE, SIDE), lambda _, i=i: i) for i in noise]
    found = list(reconstruct._reconstruct(model, originals, SIDE, None, print, progress=False))
    assert len(found) == COUNT
    assert torch.equal(torch.stack(decoded), expected)


def test_of_a_file_in_another_dtype(saved, noise, expected, tmp_path):
    Pipeline.from_pretrained(saved).save_pretrained(tmp_path / "narrow", dtype="bfloat16")
    loaded = Pipeline.from_pretrained(tmp_path / "narrow", dtype="auto")
    assert loaded.tokenizer.dtype == torch.bfloat16
    assert torch.equal(loaded.encode(noise), expected)
    assert loaded.tokenizer.code_fingerprint() == Pipeline.from_pretrained(saved).tokenizer.code_fingerprint()
