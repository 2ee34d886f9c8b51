"""Tokens per second of a forward and a backward pass over a few images."""

from dataclasses import asdict
from typing import Any

import torch

from benchmarks.measurement import Measurement, spread
from benchmarks.sampling import build
from benchmarks.timing import peak_bytes, repeated

_MOST_RUNS = 10


def measure_training(measurement: Measurement) -> dict[str, Any]:
    """Run forward and backward without an optimizer; ``bfloat16`` is autocast over float32 weights.

    Returns:
        ``tokens_per_second`` and ``seconds`` of a pass with their spread, ``peak_bytes`` and ``work``.
    """
    weights = Measurement(**{**measurement.__dict__, "dtype": "float32", "variant": ""})
    subject, device = build(weights), torch.device(measurement.device)
    subject.model.train()
    parts = {"compiled": [subject.model], "blocks compiled": getattr(subject.model, "blocks", [])}
    for module in parts.get(measurement.variant, []):
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

    taken = repeated(run, device, limit=measurement.limit_seconds, most=_MOST_RUNS)
    tokens = measurement.batch * measurement.tokens
    return {
        "seconds": spread(taken),
        "tokens_per_second": spread([tokens / seconds for seconds in taken]),
        "peak_bytes": peak_bytes(device),
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "work": asdict(subject.work),
    }
