"""How the cost of a token grows with the length of the sequence."""

from typing import Any

import torch

from benchmarks.floors import Work
from benchmarks.measurement import Measurement, SkippedError, spread
from benchmarks.sampling import build
from benchmarks.timing import peak_bytes, windows

_STEPS = 8


def measure_growth(measurement: Measurement) -> dict[str, Any]:
    """Time the last tokens of a sequence, with a cache or a state that stands where they begin.

    Returns:
        ``milliseconds_per_token`` with its spread over the last steps, and ``remembered_bytes`` of one row at the end.

    Raises:
        SkippedError: The engine would have to draw everything before, and that takes longer than the limit.
    """
    subject, device = build(measurement), torch.device(measurement.device)
    steps = _STEPS if measurement.tokens > 4 * _STEPS else 2
    if not subject.jumps:
        probe = subject.draw(measurement.batch)
        next(probe)
        [step] = windows(probe, device, count=1, length=_STEPS)
        if step * measurement.tokens > measurement.limit_seconds:
            raise SkippedError(f"{measurement.variant} would need more than the limit to reach {measurement.tokens}")
    drawing = subject.draw(measurement.batch, start=measurement.tokens - steps - 3)
    next(drawing)
    taken = windows(drawing, device, count=steps, length=1)
    return {
        "milliseconds_per_token": spread([1000 * seconds for seconds in taken]),
        "remembered_bytes": remembered_bytes(subject.work, measurement.tokens),
        "peak_bytes": peak_bytes(device),
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "work": subject.work.__dict__,
    }


def remembered_bytes(work: Work, tokens: int) -> int:
    """Bytes that a row remembers after the class and ``tokens`` codes."""
    return work.state_bytes + work.cache_bytes * (tokens + 1)
