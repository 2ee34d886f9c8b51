"""LlamaGen's class-conditional GPT from a checkout, with its own KV cache and decoding functions."""

import sys
from collections.abc import Iterator
from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.floors import Work, attention_memories, attention_mixing
from benchmarks.measurement import Measurement, UnavailableError
from benchmarks.ours import TORCH_DTYPES, aim_config
from benchmarks.subject import CFG_SCALE, Subject, linear_weights, numbers

_SIZES = {"aim-b": "GPT-B", "aim-l": "GPT-L", "aim-xl": "GPT-XL"}


class LlamaGen(Subject):
    """Calls ``prefill`` and ``decode_one_token`` as the ``generate`` of LlamaGen does.

    As in the original, the cache has a fixed length and every step attends to all of it under a mask, so that the time
    of a step does not depend on the position. Dropout is off in training as well, because ours has none.
    """

    def __init__(self, measurement: Measurement, path: str) -> None:
        if measurement.size not in _SIZES:
            raise UnavailableError(f"LlamaGen has no size that matches {measurement.size}")
        sys.path.append(path)
        gpt = import_module("autoregressive.models.gpt")
        self.decoding = import_module("autoregressive.models.generate")
        config = aim_config(measurement)
        self.tokens, self.device = config.num_tokens, torch.device(measurement.device)
        self.dtype = TORCH_DTYPES[measurement.dtype]
        settings = {
            "vocab_size": config.vocab_size,
            "block_size": config.num_tokens,
            "num_classes": config.num_classes,
            "cls_token_num": 1,
            "token_dropout_p": 0.0,
            "resid_dropout_p": 0.0,
            "ffn_dropout_p": 0.0,
        }
        with self.device:
            if measurement.quick:
                model = gpt.Transformer(gpt.ModelArgs(dim=32, n_layer=2, n_head=2, **settings))
            else:
                model = gpt.GPT_models[_SIZES[measurement.size]](**settings)
        model = model.to(self.dtype)
        self.model = model
        if measurement.section == "sampling" and measurement.variant == "compiled":  # as its sample_c2i.py does
            self.model = torch.compile(model, mode="reduce-overhead", fullgraph=True)
        self.work = Work(
            matrices=numbers(linear_weights(model)),
            memories=attention_memories(
                layers=model.config.n_layer, width=model.config.dim, narrow=model.output.weight.element_size()
            ),
            mixing=model.config.n_layer * attention_mixing(width=model.config.dim, tokens=self.tokens),
        )

    @torch.no_grad()
    def generate(self, images: int, *, start: int = 0) -> Iterator[object]:
        """Generate from ``start``; earlier positions of the cache stay zero."""
        self.model.eval()
        with torch.device(self.device):
            self.model.setup_caches(2 * images, self.tokens + 1, self.dtype)
        classes = torch.arange(images, device=self.device) % self.model.num_classes
        condition = torch.cat([classes, torch.full_like(classes, self.model.num_classes)])
        position = torch.arange(0, 1, device=self.device)
        codes = self.decoding.prefill(self.model, condition, position, CFG_SCALE)
        yield codes
        for t in range(start + 1, self.tokens):
            position = torch.tensor([t], device=self.device)
            codes, _ = self.decoding.decode_one_token(self.model, codes.view(-1, 1), position, CFG_SCALE, True)
            yield codes

    def loss(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of its training logits."""
        self.model.train()
        for layer in self.model.layers:
            layer.attention.kv_cache = None
        logits, _ = self.model(codes[:, :-1], labels)
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())


def build(measurement: Measurement, paths: dict[str, str]) -> LlamaGen:
    """Build the peer from its checkout."""
    return LlamaGen(measurement, paths["llamagen"])
