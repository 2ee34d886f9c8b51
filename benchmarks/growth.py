"""Time per token as a function of the length of the sequence."""

from dataclasses import asdict
from typing import Any

import torch

from benchmarks.measurement import Measurement, spread
from benchmarks.ours import Ours
from benchmarks.timing import peak_bytes, reset_peak, windows

_WINDOW = 32  # tokens; the native engine folds its cache into the state that often, and a window has to include it
_WINDOWS = 3


def measure_growth(measurement: Measurement) -> dict[str, Any]:
    """Time the last tokens of a sequence, with a state as if all earlier tokens had been decoded.

    Returns:
        ``milliseconds_per_token`` with its spread over windows of 32 tokens, and ``remembered_bytes``: the
        state of one row.
    """
    torch.manual_seed(0)
    subject, device = Ours(measurement), torch.device(measurement.device)
    reset_peak(device)
    length = min(_WINDOW, measurement.tokens // (2 * _WINDOWS))
    steps = subject.generate(measurement.batch, start=measurement.tokens - _WINDOWS * length - 2)
    next(steps)  # warm-up
    taken = windows(steps, device, count=_WINDOWS, length=length)
    return {
        "milliseconds_per_token": spread([1000 * seconds for seconds in taken]),
        "remembered_bytes": subject.remembered_bytes(),
        "peak_bytes": peak_bytes(device),
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "work": asdict(subject.work),
    }
