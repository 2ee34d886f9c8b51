"""Where a decoding token and a training step go, kernel by kernel."""

from collections import defaultdict
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.measurement import Measurement
from benchmarks.sampling import build
from benchmarks.timing import seconds, synchronize
from benchmarks.training import training_step

TOP = 25
_STEPS = 4


def measure_profile(measurement: Measurement) -> dict[str, Any]:
    """Profile tokens in the middle of guided images (subject ``sampling``) or training steps (``training``).

    Returns:
        ``milliseconds`` of one token or step without the profiler; ``busy_milliseconds``, the sum of its kernels;
        ``launches``; and ``kernels``, the ``TOP`` ones by their time, each with ``name``, ``microseconds``, ``count``
        and ``share`` of the sum, all of one token or step. On a CPU, operators are counted instead of kernels.
    """
    device = torch.device(measurement.device)
    inside = Measurement(**{**measurement.__dict__, "section": measurement.subject, "subject": "aim"})
    run = _steps(inside) if measurement.subject == "training" else _tokens(inside)
    run()
    wall = seconds(run, device) / _STEPS
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * (device.type == "cuda"))]) as seen:
        run()
        synchronize(device)
    kernels = _on_cuda(seen) if device.type == "cuda" else _on_cpu(seen)
    total = sum(time for time, _ in kernels.values())
    ordered = sorted(kernels.items(), key=lambda each: -each[1][0])[:TOP]
    return {
        "milliseconds": 1000 * wall,
        "busy_milliseconds": total / _STEPS / 1000,
        "launches": sum(count for _, count in kernels.values()) / _STEPS,
        "kernels": [
            {
                "name": name,
                "microseconds": time / _STEPS,
                "count": count / _STEPS,
                "share": time / total if total else 0.0,
            }
            for name, (time, count) in ordered
        ],
    }


def _tokens(measurement: Measurement) -> Callable[[], None]:
    """Return a call that takes ``_STEPS`` tokens in the middle of images; everything is recorded and compiled."""
    subject = build(measurement)
    for _ in subject.generate(measurement.batch):
        pass
    run = subject.generate(measurement.batch)
    for _ in islice(run, max(measurement.tokens // 2 - 2 * _STEPS, 1)):
        pass
    return lambda: next(islice(run, _STEPS - 1, None), None)  # type: ignore[return-value, func-returns-value]


def _steps(measurement: Measurement) -> Callable[[], None]:
    """Return a call that takes ``_STEPS`` training steps, after one that compiles."""
    step, _ = training_step(measurement)
    step()

    def run() -> None:
        for _ in range(_STEPS):
            step()

    return run


def _on_cuda(seen: Any) -> dict[str, tuple[float, int]]:
    """Return microseconds and number of each kernel."""
    found: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for event in seen.events():
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            time, count = found[event.name]
            found[event.name] = time + event.time_range.elapsed_us(), count + 1
    return dict(found)


def _on_cpu(seen: Any) -> dict[str, tuple[float, int]]:
    """Return microseconds and number of each operator, without those that it calls."""
    return {each.key: (each.self_cpu_time_total, each.count) for each in seen.key_averages()}
