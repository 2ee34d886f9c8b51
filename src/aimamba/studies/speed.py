"""Speed and memory of sampling by length of the sequence. They do not depend on the weights, so these are random."""

import time
from collections import deque
from dataclasses import replace
from typing import Any

import torch

from aimamba.generation import SamplingConfig, generate
from aimamba.models import AiM, AiMConfig
from aimamba.studies.recipe import SpeedConfig

_LONG_ENOUGH = 2.0  # seconds of sampling after which a measurement is not repeated


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


def _speed(model: AiM, batch: int) -> float:
    """Return images per second: the fastest of several measurements, after a short run to warm up."""
    labels = torch.zeros(batch, dtype=torch.long)
    warming_up = generate(model, labels, SamplingConfig(), engine="plain")
    next(warming_up)
    fastest, spent = float("inf"), 0.0
    while spent < _LONG_ENOUGH:
        started = time.perf_counter()
        [codes] = deque(generate(model, labels, SamplingConfig(), engine="plain"), maxlen=1)
        codes.cpu()  # waits for the device
        seconds = time.perf_counter() - started
        fastest, spent = min(fastest, seconds), spent + seconds
    return batch / fastest
