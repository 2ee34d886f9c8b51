"""What a run will cost: steps, images and epochs before its first step, time and memory after ten."""

import importlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import TypeVar

import torch
from tqdm import tqdm

from aimamba.cores import usable_cores
from aimamba.errors import counted
from aimamba.train.settings import FitConfig
from aimamba.train.task import Amount

Item = TypeVar("Item")

_STEPS = 10  # that are timed
_MEMORISED_AFTER = 5  # epochs; the packaged generator began in its fifth, with fewer codes than parameters
_FEW_HELD_OUT = 20
_LONG = 0.25  # share of a step that reading images should not take
_LONG_ON_CUDA = 0.8  # where the device works on a step while the next images are read


class Costs:
    """Counts and times the steps that are left of a run."""

    def __init__(self, amount: Amount, config: FitConfig, *, parameters: int, start: int, device: torch.device) -> None:
        """Describe the run.

        Args:
            amount: What it is trained on.
            config: Its settings.
            parameters: Number of the model's parameters that are trained.
            start: Number of steps already taken.
            device: Where it is trained.
        """
        self._amount, self._config, self._parameters = amount, config, parameters
        self._step, self._device = start, device
        self._seconds: list[float] = []
        self._reading = 0.0

    def before(self) -> list[str]:
        """Return what is known before the first step, one line each."""
        amount, config = self._amount, self._config
        images = config.steps * config.batch_size
        epochs = images / amount.train
        lines = [
            f"training {self._parameters:,} parameters on {amount.train:,} images, {amount.held_out:,} held out: "
            f"{config.steps:,} steps of {config.batch_size} = {images:,} images, {epochs:.3g} epochs"
        ]
        if epochs / amount.views > _MEMORISED_AFTER and amount.train * amount.values < self._parameters:
            lines.append(
                f"note: {amount.train:,} images of {amount.values:,} {amount.unit} are few for {self._parameters:,} "
                f"parameters and {epochs:.3g} epochs, so the model may memorise them: use more images, fewer steps or "
                "a smaller model, and watch the held-out loss"
            )
        if amount.held_out < _FEW_HELD_OUT:
            lines.append(f"note: with {counted(amount.held_out, 'held-out image')} the held-out numbers are rough")
        return lines

    def timed(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Yield the batches, and note how long they take to read."""
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._reading += time.perf_counter() - started
            yield batch

    def observe(self, seconds: float) -> list[str]:
        """Take in the time of a step; after the tenth, return what the rest will cost, one line each."""
        self._step += 1
        if len(self._seconds) == _STEPS:
            return []
        self._seconds.append(seconds)
        if len(self._seconds) < _STEPS:
            return []
        median = statistics.median(self._seconds)  # the first steps may compile kernels
        left = self._config.steps - self._step
        memory = f"; {gib:.3g} GiB of memory at its peak" if (gib := peak_memory(self._device)) is not None else ""
        lines = [
            f"{median:.3g} s a step: {tqdm.format_interval(median * left)} for the {left:,} steps left, without "
            f"evaluations and sheets{memory}"
        ]
        share = self._reading / _STEPS / median if median > 0 else 0.0
        long = _LONG_ON_CUDA if self._device.type == "cuda" else _LONG
        if self._amount.workers == 0 and share > long and usable_cores() > 1:
            lines.append(
                f"note: reading images takes {min(share, 1):.0%} of a step: --workers 2 (data.workers) reads them ahead"
            )
        return lines


def peak_memory(device: torch.device) -> float | None:
    """Return the most memory that was in use so far, in GiB; None where that is not known.

    On CUDA it is that of tensors on the device, on a Mac's GPU what its driver has allocated, and on a CPU that of the
    process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    if os.name == "nt":
        return None
    resource = importlib.import_module("resource")
    used: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)
