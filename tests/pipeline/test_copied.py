"""Pipelines that are pickled, copied, moved and shared by threads."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline
from refusals import one_line_error

GUIDED = SamplingConfig(cfg_scale=2.0, seed=3)


@pytest.fixture(params=["plain", "native"])
def pipeline(request, make_aim, make_vq):
    shape = {"width": 32, "state_size": 16, "head_width": 16}
    return Pipeline(make_vq(), make_aim(**shape), tuple("abcde"), engine=request.param)


def images(pipeline, label=1, seed=3):
    return np.stack([np.asarray(image) for image in pipeline([label], 2, SamplingConfig(cfg_scale=2.0, seed=seed))])


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_copy_generates_the_same_images(pipeline, copied, used):
    if used:
        images(pipeline)
    twin = copied(pipeline)
    expected = images(pipeline)
    assert np.array_equal(images(twin), expected)
    with torch.no_grad():
        twin.generator.word_embedding.weight.neg_()
    assert not np.array_equal(images(twin), expected)
    assert np.array_equal(images(pipeline), expected), "the original shares nothing with it"


def test_torch_saves_a_pipeline(pipeline):
    expected, file = images(pipeline), io.BytesIO()
    torch.save(pipeline, file)
    file.seek(0)
    assert np.array_equal(images(torch.load(file, weights_only=False)), expected)


def test_threads_share_a_pipeline(pipeline):
    jobs = [(label, seed) for label in range(3) for seed in (0, 5)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: images(pipeline, *job), jobs))
    for job, image in zip(jobs, found, strict=True):
        assert np.array_equal(image, images(pipeline, *job)), job


def test_a_pipeline_is_moved_and_cast(pipeline):
    assert pipeline.device == torch.device("cpu")
    assert pipeline.dtype == torch.float32
    named = pipeline.tokenizer.code_fingerprint()
    assert pipeline.to("cpu", torch.bfloat16) is pipeline
    assert {part.dtype for part in (pipeline.generator, pipeline.tokenizer)} == {torch.bfloat16}
    assert pipeline.generator.norm.weight.dtype == torch.float32
    assert pipeline.tokenizer.code_fingerprint() == named, "the generator still finds its tokenizer"
    assert pipeline.to(device=torch.device("cpu"), dtype="torch.float32").dtype == torch.float32
    assert len(images(pipeline)) == 2


@pytest.mark.parametrize(
    ("places", "named", "said"),
    [
        (("tpu",), {}, "device 'tpu' is not available"),
        (("int8",), {}, "dtype 'int8' is unknown"),
        ((torch.int64,), {}, "dtype 'int64' is unknown"),
        ((), {"dtype": "half"}, "dtype 'half' is unknown"),
        ((), {"device": "cuda:9"}, "device 'cuda:9' is not available"),
    ],
)
def test_places_that_are_none(make_aim, make_vq, places, named, said):
    with one_line_error(ConfigError) as caught:
        Pipeline(make_vq(), make_aim()).to(*places, **named)
    assert said in str(caught.value)
