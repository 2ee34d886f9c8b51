"""Tokens per second of training on a few images: forward and backward, with or without the optimiser."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from aimamba.data.codes import CodeBatch
from aimamba.generation.capture import capture
from aimamba.train.ema import ExponentialAverage
from aimamba.train.optim import Learner, adamw
from aimamba.train.settings import FitConfig
from aimamba.train.step import RecordedStep, TrainingStep
from benchmarks.measurement import Measurement, SkippedError, spread
from benchmarks.sampling import build
from benchmarks.subject import Subject
from benchmarks.telling import GRAPH, OPTIMIZER, RECORDED
from benchmarks.timing import peak_bytes, repeated

_MOST_RUNS = 10
_LR, _DECAY = 1e-4, 0.9999


def measure_training(measurement: Measurement) -> dict[str, Any]:
    """Run training steps; ``bfloat16`` is autocast over float32 weights.

    The variant "CUDA graph" replays forward and backward pass as one; "with the optimiser" adds what
    ``aimamba.train.fit`` adds: clipping, AdamW, the moving average, and reading the loss.

    Returns:
        ``tokens_per_second`` and ``seconds`` of a step with their spread, ``peak_bytes``, ``updates`` and ``work``.
    """
    device = torch.device(measurement.device)
    step, subject = training_step(measurement)
    taken = repeated(step, device, limit=measurement.limit_seconds, warm_up=3, most=_MOST_RUNS)
    tokens = measurement.batch * measurement.tokens
    return {
        "seconds": spread(taken),
        "tokens_per_second": spread([tokens / seconds for seconds in taken]),
        "peak_bytes": peak_bytes(device),
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "updates": measurement.variant in (OPTIMIZER, GRAPH),
        "work": asdict(subject.work),
    }


def training_step(measurement: Measurement) -> tuple[Callable[[], object], Subject]:
    """Build a generator, and return one training step on random codes, and the generator."""
    weights = Measurement(**{**measurement.__dict__, "dtype": "float32", "variant": ""})
    subject, device = build(weights), torch.device(measurement.device)
    subject.model.train()
    compiled = measurement.variant == "compiled"
    parts = [subject.model] if compiled else list(getattr(subject.model, "blocks", ()))
    for module in parts if measurement.variant in ("compiled", "blocks compiled") else ():
        module.compile(dynamic=False)
    vocabulary = subject.model.config.vocab_size  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(vocabulary, (measurement.batch, measurement.tokens), generator=generator).to(device)
    labels = torch.arange(measurement.batch, device=device)

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=measurement.dtype == "bfloat16"):
            loss = subject.loss(codes, labels)
        loss.backward()
        subject.model.zero_grad(set_to_none=True)

    if measurement.variant in (RECORDED, GRAPH) and device.type != "cuda":
        raise SkippedError("a CUDA graph needs a CUDA device")
    if measurement.variant == RECORDED:
        return capture(run), subject
    if measurement.variant not in (OPTIMIZER, GRAPH):
        return run, subject
    return _with_optimizer(measurement, subject, CodeBatch(codes, labels)), subject


def _with_optimizer(measurement: Measurement, subject: Subject, batch: CodeBatch) -> Callable[[], object]:
    """Return a step as ``aimamba.train.fit`` takes it, without the data."""
    device, graph = torch.device(measurement.device), measurement.variant == GRAPH

    def loss(_model: nn.Module, batch: CodeBatch, _rng: torch.Generator, _step: int) -> tuple[Tensor, dict[str, Any]]:
        return subject.loss(batch.codes, batch.labels), {}

    config = FitConfig(steps=1, batch_size=measurement.batch, lr=_LR, cuda_graph=graph)
    optimizer = adamw(subject.model, lr=_LR, betas=config.betas, weight_decay=config.weight_decay)
    average = ExponentialAverage(subject.model, _DECAY)
    kind: Any = RecordedStep if graph else TrainingStep
    learners = [Learner(subject.model, optimizer, _LR)]
    step = kind(loss, subject.model, learners, config, device, measurement.dtype, average=average)

    def update() -> list[float]:
        values, _ = step.take([batch], 0, _LR)
        read: list[float] = values.tolist()
        average.updates += 1
        return read

    return update
