"""Images per second of the whole pipeline: guided, decoded by the tokenizer, on the host."""

import time
from collections.abc import Iterator
from itertools import count, pairwise
from typing import Any

import torch

from aimamba.generation import SamplingConfig
from aimamba.models import VQ_PRESETS, VQModel
from aimamba.pipeline import Pipeline
from benchmarks.decoder import QUICK
from benchmarks.measurement import Measurement, SkippedError, spread
from benchmarks.ours import Ours
from benchmarks.subject import CFG_SCALE
from benchmarks.timing import peak_bytes, reset_peak

_MOST_MEMORY = 0.9  # of the device, for what all rows remember
_LEAST = 2  # batches that are timed
_LONGEST = 10.0  # seconds, with more batches than these


def measure_images(measurement: Measurement) -> dict[str, Any]:
    """Generate and decode batch after batch, as ``aimamba sample`` does, and note when each is on the host.

    The first batch is not counted: it compiles, records and fills the queue of the device.

    Returns:
        ``images_per_second`` of the batches after the first one together, ``seconds_per_picture`` with the spread of
        single batches, and ``peak_bytes``.
    """
    torch.manual_seed(0)
    pipeline, batch = _build(measurement), measurement.batch
    reset_peak(pipeline.device)
    end, begun = float("inf"), 0

    def jobs() -> Iterator[list[tuple[int, int]]]:
        nonlocal begun
        for begun in count(1):
            yield [(image % pipeline.generator.config.num_classes, image) for image in range(batch)]
            if begun > _LEAST and time.perf_counter() > end:
                return

    moments: list[float] = []
    for finished in pipeline.batches(jobs(), SamplingConfig(cfg_scale=CFG_SCALE)):
        assert finished.images.device.type == "cpu"
        moments.append(time.perf_counter())
        if len(moments) == 1:
            end = moments[0] + min(measurement.limit_seconds, _LONGEST)
    taken = [later - earlier for earlier, later in pairwise(moments)]
    return {
        "images_per_second": batch * len(taken) / sum(taken),
        "seconds_per_picture": spread([seconds / batch for seconds in taken]),
        "batches": begun,
        "peak_bytes": peak_bytes(pipeline.device),
    }


def _build(measurement: Measurement) -> Pipeline:
    """Build generator and tokenizer with random weights.

    Raises:
        UnavailableError: There is no such engine.
        SkippedError: The engine cannot decode this model here, or the device has too little memory for the batch.
    """
    ours = Ours(measurement)
    engine = ours.engine
    tokenizer = VQModel(QUICK if measurement.quick else VQ_PRESETS["vq-f16"]).cast(ours.model.dtype).to(ours.device)
    if ours.device.type == "cuda":
        total = torch.cuda.get_device_properties(ours.device).total_memory
        check_memory(2 * measurement.batch * engine.init_state(1).nbytes, total)
    return Pipeline(tokenizer.eval(), ours.model.eval(), engine=ours.name)


def check_memory(needed: int, total: int) -> None:
    """Check that what all rows remember fits on a device, both in bytes.

    Raises:
        SkippedError: It does not.
    """
    if needed > _MOST_MEMORY * total:
        raise SkippedError(f"its rows remember {needed / 2**30:.0f} GiB, and the device has {total / 2**30:.0f}")
