"""Take one measurement in its own process: ``python -m benchmarks.worker MEASUREMENT.json RESULT.json``.

Peak memory then belongs to this measurement alone, and changes that a peer makes to other modules do not reach the
next measurement.
"""

import json
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.disturbance import Disturbance
from benchmarks.measurement import Measurement, SkippedError, UnavailableError

_MEASURES = {
    "ceilings": "benchmarks.ceilings:measure_ceiling",
    "sampling": "benchmarks.sampling:measure_sampling",
    "images": "benchmarks.images:measure_images",
    "training": "benchmarks.training:measure_training",
    "growth": "benchmarks.growth:measure_growth",
    "startup": "benchmarks.startup:measure_startup",
    "decoder": "benchmarks.decoder:measure_decoder",
    "kernels": "benchmarks.kernels:measure_kernel",
    "scan": "benchmarks.scan:measure_scan",
    "convolution": "benchmarks.convolution:measure_convolution",
    "profile": "benchmarks.profiling:measure_profile",
}


def measure(measurement: Measurement) -> dict[str, Any]:
    """Take a measurement.

    Returns:
        The numbers, or the reason why there are none under ``skipped`` or ``unavailable``.
    """
    module, _, function = _MEASURES[measurement.section].partition(":")
    try:
        take = getattr(import_module(module), function)
        disturbance = Disturbance()
        return {**take(measurement), "disturbed_by_cores": disturbance.cores()}
    except UnavailableError as reason:
        return {"unavailable": str(reason)}
    except SkippedError as reason:
        return {"skipped": str(reason)}


def read_measurement(text: str) -> Measurement:
    """Read a measurement from JSON."""
    content = json.loads(text)
    return Measurement(**{**content, "paths": tuple((name, path) for name, path in content["paths"])})


def write_measurement(measurement: Measurement) -> str:
    """Write a measurement as JSON."""
    return json.dumps(asdict(measurement))


if __name__ == "__main__":
    request, result = (Path(argument) for argument in sys.argv[1:])
    result.write_text(json.dumps(measure(read_measurement(request.read_text(encoding="utf-8")))), encoding="utf-8")
