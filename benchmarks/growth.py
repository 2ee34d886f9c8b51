"""How the cost of a token grows with the length of the sequence."""

from dataclasses import asdict
from typing import Any

import torch

from benchmarks.measurement import Measurement, spread
from benchmarks.ours import Ours
from benchmarks.timing import forget_peak, peak_bytes, windows

_WINDOW = 32  # tokens: the native engine folds its cache into a state that often, and the mean must see it
_WINDOWS = 3


def measure_growth(measurement: Measurement) -> dict[str, Any]:
    """Time the last tokens of a sequence, in rows that stand where they begin.

    Returns:
        ``milliseconds_per_token`` with its spread over windows of 32 tokens, and ``remembered_bytes`` of one row.
    """
    torch.manual_seed(0)
    subject, device = Ours(measurement), torch.device(measurement.device)
    forget_peak(device)
    length = min(_WINDOW, measurement.tokens // (2 * _WINDOWS))
    drawing = subject.draw(measurement.batch, start=measurement.tokens - _WINDOWS * length - 2)
    next(drawing)  # warms up
    taken = windows(drawing, device, count=_WINDOWS, length=length)
    return {
        "milliseconds_per_token": spread([1000 * seconds for seconds in taken]),
        "remembered_bytes": subject.remembered_bytes(),
        "peak_bytes": peak_bytes(device),
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "work": asdict(subject.work),
    }
