"""Seconds per image: guided, without the decoder of the tokenizer."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from statistics import fmean, median
from typing import Any

import torch

from benchmarks.measurement import Measurement, spread
from benchmarks.ours import Ours
from benchmarks.peers import PEERS, build_peer
from benchmarks.subject import Subject
from benchmarks.timing import peak_bytes, reset_peak, synchronize, windows

_WARM_UP, _PROBE = 3, 5  # steps
_WINDOW = 16  # steps timed together
_MOST_RUNS = 5
_STARTS = 4  # positions of an image where steps are timed if whole images would take too long
_LEAST = 4  # tokens left after a start: one warms up, two are timed, and the last one of an image takes no step


def build(measurement: Measurement) -> Subject:
    """Build our generator or a peer's with random weights."""
    torch.manual_seed(0)
    subject = build_peer(measurement) if measurement.subject in PEERS else Ours(measurement)
    subject.model.requires_grad_(measurement.section == "training")
    reset_peak(torch.device(measurement.device))  # building in float32 takes more memory than running in bfloat16
    return subject


def measure_sampling(measurement: Measurement) -> dict[str, Any]:
    """Generate whole images if they fit into the time limit, otherwise steps at several positions of an image.

    Returns:
        ``seconds_per_picture`` and ``milliseconds_per_token`` with their spread (over generated images and over
        windows of 16 tokens), ``estimated``, ``peak_bytes`` and ``work``.
    """
    subject, device = build(measurement), torch.device(measurement.device)
    batch, tokens, limit = measurement.batch, measurement.tokens, measurement.limit_seconds
    probe = subject.generate(batch)
    for _ in islice(probe, _WARM_UP):
        pass
    [step] = windows(probe, device, count=1, length=_PROBE)
    probe.close()  # type: ignore[attr-defined]
    estimated = step * tokens > limit
    if estimated:
        taken = list(_steps_at_several(subject, batch, tokens, device, limit))
        images = [fmean(median(steps) for steps in taken) * tokens]
    else:
        runs = min(max(int(limit / (step * tokens)), 1), _MOST_RUNS)
        taken = [_whole(subject.generate(batch), tokens, device) for _ in range(runs)]
        images = [fmean(each) * tokens for each in taken]
    return {
        "seconds_per_picture": spread([seconds / batch for seconds in images]),
        "milliseconds_per_token": spread([1000 * seconds for each in taken for seconds in each]),
        "estimated": estimated,
        "peak_bytes": peak_bytes(device),
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "work": asdict(subject.work),
    }


def _whole(steps: Iterator[object], tokens: int, device: torch.device) -> list[float]:
    """Seconds per step of one batch of images, window by window."""
    length = min(_WINDOW, tokens)
    taken = windows(steps, device, count=tokens // length, length=length)
    synchronize(device)
    return taken


def _steps_at_several(
    subject: Subject, batch: int, tokens: int, device: torch.device, limit: float
) -> Iterator[list[float]]:
    """Seconds per step at evenly spaced positions."""
    for part in range(_STARTS):
        start = tokens * (2 * part + 1) // (2 * _STARTS)
        steps = subject.generate(batch, start=min(start, tokens - _LEAST))
        next(steps)
        yield _within(steps, device, limit / _STARTS)


def _within(steps: Iterator[object], device: torch.device, limit: float) -> list[float]:
    """Seconds of single steps until the time limit, at least two."""
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) + taken[-1] < limit:
        step = windows(steps, device, count=1, length=1)
        if not step:
            break
        taken += step
    return taken
