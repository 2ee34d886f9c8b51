"""Speed and memory of sampling: of random weights by length of the sequence, and of a pipeline by guidance."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from aimamba.config import to_mapping
from aimamba.evaluation.sources import ModelSource, make_labels
from aimamba.generation import SamplingConfig, generate
from aimamba.models import AiM, AiMConfig
from aimamba.pipeline import Pipeline
from aimamba.studies.settings import SpeedConfig

_LONG_ENOUGH = 2.0  # seconds of sampling after which a measurement is not repeated
_ROUNDS = 5  # times that each setting of guidance is measured


def sampling_speed(config: AiMConfig, speed: SpeedConfig, device: torch.device) -> list[dict[str, Any]]:
    """Measure the sampling of a generator of this shape, without guidance and without decoding to images.

    Args:
        config: Shape of the generator; its number of tokens is replaced.
        speed: Lengths and batches to measure.
        device: Where the generator runs.

    Returns:
        For every length and batch: ``tokens``, ``state_bytes`` of a row, ``batch`` and ``pictures_per_second``.
    """
    found = []
    for tokens in speed.tokens:
        longer = replace(config, num_tokens=tokens)
        model = AiM(longer).to(device).eval()
        row = {"tokens": tokens, "state_bytes": state_bytes(longer)}
        found += [{**row, "batch": batch, "pictures_per_second": _speed(model, batch)} for batch in speed.batches]
    return found


def state_bytes(config: AiMConfig) -> int:
    """Return the bytes of the decoding state of one row in float32: SSM states, windows, keys and values."""
    with torch.device("meta"):
        return AiM(config).init_state(1).nbytes


def guidance_speed(pipeline: Pipeline, samplings: Sequence[SamplingConfig], batch: int) -> list[dict[str, Any]]:
    """Measure a pipeline with several settings of sampling, in turn several times, decoding to images included.

    Args:
        pipeline: The model.
        samplings: The settings.
        batch: Images that are generated at once.

    Returns:
        For every setting ``sampling``, ``pictures_per_second`` (the fastest of its times), and ``rows``, the mean
        number of rows of an image over its tokens: 1 without guidance, and 2 if the last token is guided.
    """
    clock = _clock(pipeline.device)
    labels = make_labels("balanced", batch, pipeline.generator.config.num_classes)
    fastest = [float("inf")] * len(samplings)
    for _ in range(_ROUNDS):
        for index, sampling in enumerate(samplings):
            started = clock()
            source = ModelSource("speed", pipeline, labels, sampling, batch)
            deque(source.read(source.units()), maxlen=0)
            fastest[index] = min(fastest[index], clock() - started)
    length = pipeline.generator.config.num_tokens
    found = []
    for sampling, seconds in zip(samplings, fastest, strict=True):
        last = max((t + 1 for t in range(length) if sampling.guidance_at(t, length) != 1), default=0)
        rate = {"pictures_per_second": batch / seconds, "rows": 1 + last / length}
        found.append({"sampling": to_mapping(sampling), **rate})
    return found


def _clock(device: torch.device) -> Callable[[], float]:
    """Return what tells seconds: for one thread on a CPU its processor time, which other programs disturb less."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def _speed(model: AiM, batch: int) -> float:
    """Return images per second: the fastest of several measurements, after a short run to warm up."""
    clock = _clock(model.device)
    labels = torch.zeros(batch, dtype=torch.long)
    warming_up = generate(model, labels, SamplingConfig(), engine="plain")
    next(warming_up)
    fastest, spent = float("inf"), 0.0
    while spent < _LONG_ENOUGH:
        started = clock()
        [codes] = deque(generate(model, labels, SamplingConfig(), engine="plain"), maxlen=1)
        codes.cpu()  # waits for the device
        seconds = clock() - started
        fastest, spent = min(fastest, seconds), spent + seconds
    return batch / fastest
