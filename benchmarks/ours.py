"""AiM and the attention baseline as benchmark subjects, with every engine."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import get_args

import torch
from torch import Tensor

from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig, generate
from aimamba.generation.engines import Engine, EngineName, make_engine
from aimamba.models import AIM_PRESETS, AiM, AiMConfig
from aimamba.models.state import mixer_tensors
from aimamba.ops.sampling.logits import guide, sample
from aimamba.train.generator import code_cross_entropy
from benchmarks.floors import Memory, Work, attention_memories, attention_mixing, mamba_memories, ssd_mixing
from benchmarks.measurement import Measurement, SkippedError, UnavailableError
from benchmarks.subject import CFG_SCALE, Subject, linear_weights, numbers

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16}
"""Dtype of the model; the int8 engine quantizes the weights itself."""

_QUICK = AiMConfig(
    width=32, num_blocks=2, vocab_size=64, num_tokens=16, num_classes=10, state_size=16, head_width=16, chunk_size=8
)


def aim_config(measurement: Measurement) -> AiMConfig:
    """Return the config of the generator to measure."""
    config = _QUICK if measurement.quick else AIM_PRESETS[measurement.size]
    config = replace(config, num_tokens=measurement.tokens)
    return attention_of_same_size(config) if measurement.subject == "attention" else config


def attention_of_same_size(config: AiMConfig) -> AiMConfig:
    """Return the attention baseline with about as many parameters as ``config``."""
    baseline = replace(config, mixer="attention")
    with torch.device("meta"):
        missing = AiM(config).num_parameters() - AiM(baseline).num_parameters()
    hidden = round(baseline.feed_forward * config.width) + round(
        missing / (3 * config.width * (config.num_blocks // 2))
    )
    return replace(baseline, feed_forward=max(hidden, 1) / config.width)


def count_work(model: AiM) -> Work:
    """Count the work of a generator."""
    config, narrow = model.config, model.word_embedding.weight.element_size()
    used = [weight for block in model.blocks for weight in linear_weights(block)]
    memories: tuple[Memory, ...]
    if config.mixer == "attention":
        layers = config.num_blocks // 2  # every other block is a feed-forward
        memories = attention_memories(layers=layers, width=config.width, narrow=narrow)
        mixing = layers * attention_mixing(width=config.width, tokens=config.num_tokens)
    else:
        inner, chunk = config.inner, min(config.chunk_size, config.num_tokens)
        memories = mamba_memories(
            blocks=config.num_blocks,
            inner=inner,
            heads=inner // config.head_width,
            state_size=config.state_size,
            conv_width=config.conv_width,
            narrow=narrow,
        )
        mixing = config.num_blocks * ssd_mixing(inner=inner, state_size=config.state_size, chunk=chunk)
    return Work(
        matrices=numbers([model.word_embedding.weight, *used]),
        once=numbers([*linear_weights(model.adaln), model.final_adaln.weight]),
        memories=memories,
        mixing=mixing,
    )


class Ours(Subject):
    """``AiM`` with one of its engines; ``plain`` is the module itself."""

    def __init__(self, measurement: Measurement) -> None:
        self.device = torch.device(measurement.device)
        with self.device:  # random numbers for a billion weights take a CPU many seconds
            self.model = AiM(aim_config(measurement)).cast(TORCH_DTYPES[measurement.dtype])
        self.work = count_work(self.model)
        self.tokens = measurement.tokens
        self.name = measurement.variant or "plain"

    @cached_property
    def engine(self) -> Engine:
        """The engine, with packed weights.

        Raises:
            UnavailableError: The engine does not exist.
            SkippedError: The engine cannot decode this model on this machine.
        """
        if self.name not in get_args(EngineName):
            raise UnavailableError(f"engine {self.name!r} is not in this version")
        try:
            return make_engine(self.model.eval(), self.name)
        except ConfigError as error:
            raise SkippedError(str(error)) from error

    def generate(self, images: int, *, start: int = 0) -> Iterator[object]:
        """Generate through ``aimamba.generation.generate``, or step by step from a later start."""
        if start > 0:
            return self._from(images, start)
        labels = torch.arange(images) % self.model.config.num_classes
        return generate(self.model, labels, SamplingConfig(cfg_scale=CFG_SCALE), engine=self.engine)

    @torch.no_grad()
    def _from(self, images: int, start: int) -> Iterator[object]:
        """Decode rows at position ``start``, whose memory is noise."""
        state = self.engine.init_state(2 * images)
        tensors = state.tensors()
        noise = {name: _noise(tensor) for name, tensor in mixer_tensors(tensors).items()}
        position = torch.full_like(state.position, start + 1)
        state = state.with_tensors(tensors | noise | {"position": position})
        inputs = torch.zeros(2 * images, dtype=torch.long, device=self.device)
        scales = torch.full((images,), CFG_SCALE, device=self.device)
        uniforms = torch.rand(self.tokens, images, dtype=torch.float64)
        for t in range(start, self.tokens - 1):
            logits = self.engine.step(inputs, state).float()
            mixed = guide(logits[:images], logits[images:], scales)
            codes = sample(mixed, uniforms[t], temperature=1.0, top_k=0, top_p=1.0)
            inputs = codes.repeat(2)
            yield codes

    def remembered_bytes(self) -> int:
        """Return the bytes that the engine keeps for one row of a whole image."""
        return self.engine.init_state(1).nbytes

    def loss(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of ``GeneratorTask``, without label dropout."""
        return code_cross_entropy(self.model, codes, labels)


def _noise(like: torch.Tensor) -> torch.Tensor:
    return torch.rand_like(like) if like.is_floating_point() else torch.randint_like(like, 100)
