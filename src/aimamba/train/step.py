"""One training step on the device, without waiting for it: loss, gradients, clipping, optimisers, moving average.

``RecordedStep`` records it as a CUDA graph. A step of a generator launches a thousand kernels or more; replayed as a
graph, they follow each other without Python in between.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor

from aimamba import distributed
from aimamba.config import check
from aimamba.errors import ConfigError
from aimamba.generation.capture import capture
from aimamba.train.ema import Average
from aimamba.train.optim import Learner
from aimamba.train.settings import FitConfig
from aimamba.train.task import Batch, Model, Task, map_tensors

Reports = list[dict[str, Tensor | float]]
"""What ``Task.loss`` reports, for each part of a batch."""

Loss = Callable[[Model, Batch, torch.Generator, Any], tuple[Tensor, dict[str, Tensor | float]]]
"""See ``Task.loss``."""

Combine = Callable[[list[Tensor], Reports], tuple[list[Tensor], Reports]]
"""Average the losses and reports of the parts of a batch over processes."""

EndStep = Callable[[Tensor], None]
"""See ``Task.end_step``."""

Run = Callable[[], tuple[Tensor, Reports]]
"""A step on fixed tensors."""

_log = logging.getLogger(__name__)
_WARM_UP_STEPS = 2  # compile kernels and allocate what libraries keep, which a recording must not do


def alone(losses: list[Tensor], reports: Reports) -> tuple[list[Tensor], Reports]:
    """Return what it is given, because one process has nothing to average."""
    return losses, reports


def _nothing(_skip: Tensor) -> None:
    """Change nothing that no optimiser changes."""


def _capture(run: Run, rng: torch.Generator) -> Run:
    return capture(run, warm_up=0, rng=rng)  # steps before have compiled the kernels


@dataclass(eq=False)
class TrainingStep(Generic[Model, Batch]):
    """Takes steps as they are written.

    Attributes:
        loss: ``Task.loss``.
        model: The model in training, on ``device``.
        learners: The networks with their optimisers.
        config: Settings of the loop.
        device: Where to train.
        precision: ``float32`` or ``bfloat16``, for the forward pass.
        combine: Averages losses and reports over processes; one process has nothing to average.
        end: ``Task.end_step``.
        average: The moving average of the model, which each step updates; None for none. The caller counts the updates.
    """

    loss: Loss[Model, Batch]
    model: Model
    learners: Sequence[Learner]
    config: FitConfig
    device: torch.device
    precision: str
    combine: Combine = alone
    end: EndStep = _nothing
    average: Average | None = None

    def take(self, parts: Iterable[Batch], step: int, lr: float) -> tuple[Tensor, Reports]:
        """Take step number ``step``; if its loss or gradient is not finite, weights and moments stay as they are.

        Args:
            parts: The parts of the batch, on the device.
            step: Number of the step, counted from 0.
            lr: Learning rate of the model.

        Returns:
            A vector on the device: the loss as reported, then the norm of each network's gradient before clipping; and
            the reports of the parts. Both may be overwritten by the next step.
        """
        self._prepare(lr)
        found = self._run(parts, step_generator(self.config.seed, step, self.device), step)
        for learner in self.learners:
            learner.optimizer.zero_grad(set_to_none=True)
        return found

    def _prepare(self, lr: float) -> None:
        """Tell the device what changes from step to step."""
        if self.average is not None:
            self.average.prepare()
        for learner in self.learners:
            learner.set_lr(lr * (learner.peak / self.config.lr))

    def _run(self, parts: Iterable[Batch], rng: torch.Generator, step: int | Tensor) -> tuple[Tensor, Reports]:
        reports: Reports = []
        losses = []
        for batch in parts:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                loss, report = self.loss(self.model, batch, rng, step)
            (loss / self.config.accumulation).backward()
            losses.append(torch.as_tensor(report.pop("loss", loss)).detach().float())
            reports.append(report)
        losses, reports = self.combine(losses, reports)
        gradients = [learner.clip(self.config.clip_norm) for learner in self.learners]
        values = torch.stack([torch.stack(losses).mean(), *gradients])
        skip = values.isfinite().all().logical_not().float()
        for learner in self.learners:
            learner.step(skip)
        self.end(skip)
        if self.average is not None:
            self.average.update(self.model, skip)
        return values, reports


@dataclass(eq=False)
class RecordedStep(TrainingStep[Model, Batch]):
    """Takes the first two steps as they are written, records the third, and replays it from then on.

    Batches and the number of the step are copied into the tensors that were recorded. Random numbers are those of
    ``TrainingStep``, because the generator belongs to the recording and is seeded before every step.

    Attributes:
        record: Turns a step on fixed tensors, with its generator, into one that repeats it.
    """

    record: Callable[[Run, torch.Generator], Run] = _capture

    def __post_init__(self) -> None:
        self._rng = torch.Generator(self.device)
        self._number = torch.zeros((), dtype=torch.long, device=self.device)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._batch: Batch | None = None
        self._replay: Run | None = None
        self._warm_up = _WARM_UP_STEPS
        for learner in self.learners:
            learner.make_recordable()

    def take(self, parts: Iterable[Batch], step: int, lr: float) -> tuple[Tensor, Reports]:
        """See ``TrainingStep.take``.

        Raises:
            ConfigError: The batch has another shape than those before it, or the step cannot be recorded. Where
                ``fit.cuda_graph`` is ``auto``, such steps are taken as they are written.
        """
        self._prepare(lr)
        seed = step_seed(self.config.seed, step)
        self._rng.manual_seed(seed)
        self._number.fill_(step)
        [batch] = parts
        if not self._fill(batch):
            return self._aside(batch)
        if self._replay is None and self._warm_up > 0:
            self._warm_up -= 1
            return self._aside()
        if self._replay is None:
            self._replay = self._recorded(seed)
        values, reports = self._replay()
        return values, [dict(report) for report in reports]

    def _recorded(self, seed: int) -> Run:
        self._forget_gradients()  # those of the recording are in its own memory
        try:
            return self.record(self._run_fixed, self._rng)
        except RuntimeError as error:  # an operation that waits for the device, or another that CUDA refuses
            reason = str(error).strip().partition("\n")[0]
            if self.config.cuda_graph is True:
                raise ConfigError(f"fit.cuda_graph: the step cannot be recorded ({reason}); set it to false") from error
            _log.warning("the steps are not recorded as a CUDA graph, which would be faster: %s", reason)
            self._rng = torch.Generator(self.device).manual_seed(seed)  # the other may still belong to the recording
            return self._aside

    def _run_fixed(self) -> tuple[Tensor, Reports]:
        assert self._batch is not None
        return self._run([self._batch], self._rng, self._number)

    def _aside(self, batch: Batch | None = None) -> tuple[Tensor, Reports]:
        """Take a step on the stream that will be recorded, or on the only one."""
        self._forget_gradients()
        run = self._run_fixed if batch is None else partial(self._run, [batch], self._rng, self._number)
        if self._stream is None:
            return run()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            found = run()
        torch.cuda.current_stream().wait_stream(self._stream)
        return found

    def _forget_gradients(self) -> None:
        for learner in self.learners:
            learner.optimizer.zero_grad(set_to_none=True)

    def _fill(self, batch: Batch) -> bool:
        """Copy a batch into the fixed tensors; return whether it fits."""
        if self._batch is None:
            self._batch = map_tensors(batch, torch.clone)
            return True
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (self._batch, batch)]
        if shapes[0] != shapes[1]:
            check(
                self.config.cuda_graph is not True,
                f"fit.cuda_graph needs batches of one shape, got {shapes[1]} after {shapes[0]}; set it to false",
            )
            return False
        for fixed, tensor in zip(self._batch, batch, strict=True):
            fixed.copy_(tensor, non_blocking=True)
        return True


def is_recorded(task: Task[Model, Batch], config: FitConfig, device: torch.device) -> bool:
    """Return whether the steps of a run are recorded as a CUDA graph.

    Raises:
        ConfigError: The run asks for it, and they cannot be.
    """
    if config.cuda_graph is True:
        check_recordable(task, device)
        return True
    if config.cuda_graph is False or config.accumulation > 1 or config.compile or distributed.size() > 1:
        return False
    try:
        check_recordable(task, device)
    except ConfigError:
        return False
    return True


def check_recordable(task: Task[Model, Batch], device: torch.device) -> None:
    """Raise a ``ConfigError`` if the steps of a task cannot be recorded as a CUDA graph on this device."""
    auxiliary = task.auxiliary()
    check(
        device.type == "cuda",
        f"fit.cuda_graph needs a CUDA device, and the run is on {device.type}; set it to false",
    )
    check(
        (auxiliary is None or auxiliary.recordable) and not task.companions(),
        "fit.cuda_graph replays one step, and the steps of this stage differ (a discriminator, or a codebook that is "
        "refilled); set it to false",
    )


def step_seed(seed: int, step: int) -> int:
    """Return the seed of the random numbers of ``step`` in a run with ``seed``."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """Return a random generator seeded for ``step``, so that no random state has to be saved."""
    return torch.Generator(device).manual_seed(step_seed(seed, step))
