"""Mamba-2 from ``transformers`` in the shape of AiM, without adaptive norms; the class is the first token."""

from collections.abc import Iterator
from inspect import signature

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.floors import Work, mamba_memories, ssd_mixing
from benchmarks.measurement import Measurement
from benchmarks.ours import TORCH_DTYPES, aim_config
from benchmarks.subject import CFG_SCALE, Subject, linear_weights, numbers

_CHUNK = 64
_CACHES = ("cache_params", "cache")  # up to version 5.18 or so, and in 5.24


class TransformersMamba2(Subject):
    """``Mamba2ForCausalLM``, decoded step by step with its own cache; guidance and sampling are plain PyTorch."""

    def __init__(self, measurement: Measurement) -> None:
        from transformers import Mamba2Config, Mamba2ForCausalLM  # noqa: PLC0415 - a peer, not a dependency

        config = aim_config(measurement)
        inner = config.inner
        self.tokens, self.device = config.num_tokens, torch.device(measurement.device)
        self.shape = Mamba2Config(
            hidden_size=config.width,
            num_hidden_layers=config.num_blocks,
            state_size=config.state_size,
            head_dim=config.head_width,
            num_heads=inner // config.head_width,
            expand=int(config.expand),
            conv_kernel=config.conv_width,
            n_groups=1,
            vocab_size=config.vocab_size,
            chunk_size=_CHUNK,
            tie_word_embeddings=True,
            pad_token_id=0,
        )
        self.model = Mamba2ForCausalLM(self.shape).to(self.device, TORCH_DTYPES[measurement.dtype])
        self.work = Work(
            matrices=numbers([self.model.lm_head.weight, *linear_weights(self.model.backbone)]),
            memories=mamba_memories(
                blocks=config.num_blocks,
                inner=inner,
                heads=self.shape.num_heads,
                state_size=config.state_size,
                conv_width=config.conv_width,
                narrow=self.model.lm_head.weight.element_size(),
            ),
            mixing=config.num_blocks * ssd_mixing(inner=inner, state_size=config.state_size, chunk=_CHUNK),
        )

    @torch.no_grad()
    def generate(self, images: int, *, start: int = 0) -> Iterator[object]:
        """Generate from an empty state even for a late ``start``, because a step costs the same at every position."""
        self.model.eval()
        inputs = torch.arange(2 * images, device=self.device)[:, None] % self.shape.vocab_size
        known = signature(self.model.forward).parameters
        name = next(name for name in _CACHES if name in known)
        cache = None
        for _ in range(start, self.tokens):
            output = self.model(inputs, **{name: cache}, use_cache=True)
            cache = output[name]
            conditional, unconditional = output.logits[:, -1].chunk(2)
            logits = unconditional + CFG_SCALE * (conditional - unconditional)
            codes = torch.multinomial(logits.softmax(dim=-1), 1)
            inputs = codes.repeat(2, 1)
            yield codes

    def loss(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of its logits; the class is the first token, as in AiM."""
        self.model.train()
        inputs = torch.cat([labels[:, None], codes[:, :-1]], dim=1)
        logits = self.model(inputs, use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())


def build(measurement: Measurement, paths: dict[str, str]) -> TransformersMamba2:
    """Build the peer; it needs no path."""
    return TransformersMamba2(measurement)
