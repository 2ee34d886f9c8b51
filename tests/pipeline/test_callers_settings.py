"""What a caller has set for PyTorch changes nothing about images, and how classes may be given."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig, make_engine
from aimamba.generation.batch import Batch, Job
from aimamba.pipeline import Pipeline
from refusals import one_line_error

CLASSES = ["planets", "sprouts"]
CONFIGS = [
    SamplingConfig(cfg_scale=1.3, temperature=0.8, seed=3),
    SamplingConfig(cfg_scale=2.1, temperature=0.7, top_k=50, min_p=0.01, seed=4),
]


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "another device": lambda: default_device("meta"),  # in place of "cuda"; whatever is made there cannot be read
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_pretrained("avatars-64")


def everything(pipeline):
    """What a pipeline makes, as tensors by name."""
    options = {"config": CONFIGS, "output_type": "tensor"}
    images = pipeline(CLASSES, **options)
    *_, preview = pipeline.stream([{"planets": 0.7, "clay": 0.3}], 1, CONFIGS[0], output_type="tensor")
    mask = np.zeros((64, 64), dtype=bool)
    mask[16:32, 24:48] = True
    batch = Batch(pipeline.generator, make_engine(pipeline.generator, pipeline.engine), 2)
    running = [batch.join(Job(label=label, config=config)) for label, config in enumerate(CONFIGS)]
    while not batch.step():
        pass
    return {
        "images": images,
        "stream": preview.images,
        "complete": pipeline.complete(images, 4, CLASSES, **options),
        "inpaint": pipeline.inpaint(images[:1], mask, CLASSES[:1], 1, CONFIGS[0], candidates=4, output_type="tensor"),
        "served": torch.stack([image.codes for image in running]),
        "codes": pipeline.encode(images),
        "bits": pipeline.score(images, CLASSES).bits,
        "classify": pipeline.classify(images),
    }


@pytest.fixture(scope="module")
def expected(pipeline):
    return everything(pipeline)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_what_is_drawn_does_not_depend_on_what_the_caller_has_set(pipeline, expected, setting):
    with setting():
        assert_close(everything(pipeline), expected, rtol=0, atol=0)
        assert torch.is_autocast_enabled("cpu") == (setting is SETTINGS["autocast"]), "it is the caller's again"
        loaded = Pipeline.from_pretrained("avatars-64")
        assert torch.equal(loaded(CLASSES, config=CONFIGS, output_type="tensor"), expected["images"])


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_nor_does_it_without_the_kernels_for_cpus(make_aim, make_vq, setting):
    plain = Pipeline(make_vq(), make_aim(), engine="plain")
    expected = plain([0, 3], config=CONFIGS, output_type="tensor")
    with setting():
        assert torch.equal(plain([0, 3], config=CONFIGS, output_type="tensor"), expected)


def test_classes_of_an_iterator_are_read_once(pipeline, expected):
    for classes in (iter(CLASSES), (name for name in CLASSES), map(str, CLASSES), dict.fromkeys(CLASSES).keys()):
        assert torch.equal(pipeline(classes, config=CONFIGS, output_type="tensor"), expected["images"])
    images = expected["images"]
    assert torch.equal(pipeline.score(images, iter(CLASSES)).bits, expected["bits"])
    assert pipeline.classify(images, iter(CLASSES)).shape == (2, 2)
    with one_line_error(ConfigError, r"expected a list of classes, got the single 'planets'; write \['planets'\]"):
        next(pipeline.stream("planets"))
