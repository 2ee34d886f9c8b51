"""One measurement in a process of its own: ``python -m benchmarks.worker MEASUREMENT.json RESULT.json``.

So peak memory is the measurement's own, and what a peer changes in other modules does not reach the next one.
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
    "training": "benchmarks.training:measure_training",
    "growth": "benchmarks.growth:measure_growth",
    "startup": "benchmarks.startup:measure_startup",
    "decoder": "benchmarks.decoder:measure_decoder",
}


def measure(measurement: Measurement) -> dict[str, Any]:
    """Take the measurement, or say in one line why it cannot be taken."""
    module, _, function = _MEASURES[measurement.section].partition(":")
    try:
        taken = getattr(import_module(module), function)
        disturbance = Disturbance()
        return {**taken(measurement), "disturbed_by_cores": disturbance.cores()}
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
    asked, answer = (Path(argument) for argument in sys.argv[1:])
    answer.write_text(json.dumps(measure(read_measurement(asked.read_text(encoding="utf-8")))), encoding="utf-8")
