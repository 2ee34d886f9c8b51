"""AiM and the attention baseline behind ``Subject``, for every engine."""

import inspect
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig, generate
from aimamba.models import AIM_PRESETS, AiM, AiMConfig
from aimamba.ops.logits import guide, sample
from benchmarks.floors import STATE_OPERATIONS, Work, attention_mixing, ssd_mixing
from benchmarks.measurement import Measurement, SkippedError, UnavailableError
from benchmarks.subject import CFG_SCALE, Subject, linear_weights, numbers

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16}
"""Dtype of the model; the int8 engine quantises it itself."""

_QUICK = AiMConfig(
    width=32, num_blocks=2, vocab_size=64, num_tokens=16, num_classes=10, state_size=8, head_width=16, chunk_size=8
)


def aim_config(measurement: Measurement) -> AiMConfig:
    """Shape of the generator to measure."""
    config = _QUICK if measurement.quick else AIM_PRESETS[measurement.size]
    config = replace(config, num_tokens=measurement.tokens)
    return attention_of_same_size(config) if measurement.subject == "attention" else config


def attention_of_same_size(config: AiMConfig) -> AiMConfig:
    """The attention baseline whose number of parameters is nearest to that of ``config``."""
    baseline = replace(config, mixer="attention")
    with torch.device("meta"):
        missing = AiM(config).num_parameters() - AiM(baseline).num_parameters()
    hidden = round(baseline.feed_forward * config.width) + round(
        missing / (3 * config.width * (config.num_blocks // 2))
    )
    return replace(baseline, feed_forward=max(hidden, 1) / config.width)


def count_work(model: AiM) -> Work:
    """Count what the generator must do from its tensors."""
    config = model.config
    head = model.word_embedding.weight
    fixed = cached = operations = products = 0
    for block in model.blocks:
        memory = block.mixer.init_state(1, 1)
        grows = config.mixer == "attention"
        size = sum(tensor.numel() * tensor.element_size() for tensor in memory.values())
        fixed, cached = (fixed, cached + size) if grows else (fixed + size, cached)
        if memory and grows:
            operations += 2 * numbers(memory.values())
            products += attention_mixing(width=config.width, tokens=config.num_tokens)
        elif memory:
            operations += STATE_OPERATIONS * memory["ssm"].numel()
            products += ssd_mixing(
                inner=config.expand * config.width,
                state_size=config.state_size,
                chunk=min(config.chunk_size, config.num_tokens),
            )
    return Work(
        matrices=numbers([head, *(weight for block in model.blocks for weight in linear_weights(block))]),
        once=numbers([*linear_weights(model.adaln), model.final_adaln.weight]),
        state_bytes=fixed,
        state_operations=0 if cached else operations,
        cache_bytes=cached,
        cache_operations=operations if cached else 0,
        mixing=products,
    )


class Ours(Subject):
    """``AiM`` drawn by one of its engines; ``plain`` is the module itself."""

    def __init__(self, measurement: Measurement) -> None:
        self.engine = measurement.variant or "plain"
        self.device = torch.device(measurement.device)
        self.model = AiM(aim_config(measurement)).cast(TORCH_DTYPES[measurement.dtype]).to(self.device)
        self.work = count_work(self.model)
        self.jumps = self.engine == "plain"
        self.tokens = measurement.tokens

    def draw(self, pictures: int, *, start: int = 0) -> Iterator[object]:
        """From the beginning, through ``generate``; from later on, step by step."""
        self.model.eval()
        return self._whole(pictures) if start == 0 else self._from(pictures, start)

    def _whole(self, pictures: int) -> Iterator[object]:
        chosen: dict[str, Any] = {}
        if "engine" in inspect.signature(generate).parameters:
            chosen["engine"] = self.engine
        elif self.engine != "plain":
            raise UnavailableError(f"engine {self.engine!r} is not in this version")
        labels = torch.arange(pictures) % self.model.config.num_classes
        try:
            yield from generate(self.model, labels, SamplingConfig(cfg_scale=CFG_SCALE), **chosen)
        except ConfigError as error:
            raise SkippedError(f"engine {self.engine!r}: {error}") from error

    @torch.no_grad()
    def _from(self, pictures: int, start: int) -> Iterator[object]:
        engine = self._stepper()
        state = engine.init_state(2 * pictures)
        inputs = torch.zeros(2 * pictures, dtype=torch.long, device=self.device)
        scales = torch.full((pictures,), CFG_SCALE, device=self.device)
        if self.jumps:
            state.position.fill_(start + 1)
            for tensor in (tensor for mixer in state.mixers for tensor in mixer.values()):
                tensor.normal_()
        else:
            for _ in range(start + 1):
                engine.step(inputs, state)
        uniforms = torch.rand(self.tokens, pictures, dtype=torch.float64)
        for t in range(start, self.tokens - 1):
            logits = engine.step(inputs, state).float()
            mixed = guide(logits[:pictures], logits[pictures:], scales)
            codes = sample(mixed, uniforms[t], temperature=1.0, top_k=0, top_p=1.0)
            inputs = codes.repeat(2)
            yield codes

    def _stepper(self) -> Any:
        if self.engine == "plain":
            return self.model
        if find_spec("aimamba.generation.engines") is None:
            raise UnavailableError(f"engine {self.engine!r} is not in this version")
        try:
            return import_module("aimamba.generation.engines").make_engine(self.model, self.engine)
        except ConfigError as error:
            raise SkippedError(f"engine {self.engine!r}: {error}") from error

    def loss(self, codes: Tensor, labels: Tensor) -> Tensor:
        """As ``GeneratorTask`` computes it, without dropping labels."""
        logits = self.model(codes[:, :-1], labels)
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())
