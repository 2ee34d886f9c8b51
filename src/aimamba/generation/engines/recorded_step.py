"""A decoding step whose shapes, addresses and instructions are the same at every token, so that it can be recorded.

It computes what ``AiM.step`` does. Nothing in it asks the device for a value: what must be known beforehand (does any
row begin? how far is the foremost one?) the caller knows from counting. It runs eagerly on every device.

Shape letters: B rows, D width, N blocks, V vocabulary, T tokens that a cache holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from aimamba.models import AiM
from aimamba.models.attention import Attention
from aimamba.models.mamba2 import Mamba2
from aimamba.ops.linear.linear import linear
from aimamba.ops.linear.residual import residual_linear_step
from aimamba.ops.mixer import step as mixer_ops
from aimamba.ops.norm.residual import residual_norm_step
from aimamba.ops.sampling import logits
from aimamba.ops.triton import unsupported

Memory = dict[str, Tensor]
"""What a model remembers of some rows: named tensors whose first axis is the row."""

Form = Literal["state", "dual"]

_SEEN_TOGETHER = 64  # attention looks at a whole number of so many places, so that few recordings serve all positions


@dataclass(frozen=True)
class Operators:
    """What a step is made of, see ``aimamba.ops.mixer.step``, ``linear`` and ``logits`` beside it."""

    state_mixer_step: Callable[..., tuple[Tensor, Tensor]] = mixer_ops.state_mixer_step
    dual_mixer_step: Callable[..., tuple[Tensor, Tensor]] = mixer_ops.dual_mixer_step
    residual_norm_step: Callable[..., Tensor] = residual_norm_step
    residual_linear_step: Callable[..., tuple[Tensor, Tensor]] = residual_linear_step
    linear: Callable[..., Tensor] = linear
    guided_sample: Callable[..., Tensor] = logits.guided_sample


def unsupported_by_kernels(model: AiM) -> str | None:
    """What keeps the Triton kernels from decoding this model, if anything does."""
    config = model.config
    for name in ("state_size", "head_width"):
        size = getattr(config, name)
        if config.mixer == "mamba2" and size & (size - 1):
            return f"{name} must be a power of two, got {size}"
    return unsupported()


def triton_operators() -> Operators:
    """The same functions as kernels, for models that ``kernels_lack`` nothing for."""
    from aimamba.ops.linear.triton import linear as products  # noqa: PLC0415 - only where it is used
    from aimamba.ops.mixer.triton import step as mixer  # noqa: PLC0415
    from aimamba.ops.norm.triton import residual as norms  # noqa: PLC0415
    from aimamba.ops.sampling.triton import logits as sampling  # noqa: PLC0415

    return Operators(
        mixer.state_mixer_step,
        mixer.dual_mixer_step,
        norms.residual_norm_step,
        products.residual_linear_step,
        products.linear,
        sampling.guided_sample,
    )


def bytes_per_row(model: AiM, form: Form, tokens: int) -> int:
    """Bytes of memory that a Mamba-2 block moves for a row's token when ``tokens`` came before."""
    config, narrow = model.config, model.word_embedding.weight.element_size()
    inner = config.width * config.expand
    if form == "state":
        return 2 * 4 * inner * config.state_size
    return (tokens + 1) * (narrow * (inner + config.state_size) + 4 * inner // config.head_width)


def choose_form(model: AiM) -> Form:
    """The form of SSD that moves fewer bytes over a whole image."""
    middle = model.config.num_tokens // 2
    return "dual" if bytes_per_row(model, "dual", middle) < bytes_per_row(model, "state", middle) else "state"


class RecordedStep:
    """``AiM.step`` on memories that stay in place.

    Args:
        model: The generator, float32 or wider, or bfloat16.
        operators: Plain functions, or kernels.
        form: Form of SSD; by default the one that moves fewer bytes.
    """

    def __init__(self, model: AiM, operators: Operators | None = None, *, form: Form | None = None) -> None:
        self.model = model
        self.operators = operators or Operators()
        self.form = form or choose_form(model)
        self.capacity = model.config.num_tokens + 1

    def new_memory(self, rows: int) -> Memory:
        """Memory of rows at position 0. Only that position is set: no step reads what was not written since."""
        model, config = self.model, self.model.config
        weight = model.word_embedding.weight
        memory = {
            "position": torch.zeros(rows, dtype=torch.long, device=weight.device),
            "shift": torch.zeros(rows, dtype=torch.long, device=weight.device),
            "condition": weight.new_zeros(rows, config.width),
            "modulation": weight.new_zeros(rows, config.num_blocks, 3, config.width),
            "final_modulation": weight.new_zeros(rows, 2, config.width),
        }
        for index, block in enumerate(model.blocks):
            for name, tensor in self._new_mixer_memory(block.mixer, rows).items():
                memory[f"{index}.{name}"] = tensor
        return memory

    def _new_mixer_memory(self, mixer: torch.nn.Module, rows: int) -> Memory:
        if not isinstance(mixer, Mamba2):
            return mixer.init_state(rows, self.capacity)  # type: ignore[operator]
        weight, heads, states = mixer.conv_weight, mixer.heads, mixer.state_size
        wide = torch.promote_types(weight.dtype, torch.float32)
        head_width = mixer.inner // heads
        memory = {"window": weight.new_empty(rows, weight.shape[1], weight.shape[0])}
        if self.form == "state":
            return memory | {"ssm": weight.new_empty(rows, heads, head_width, states, dtype=wide)}
        return memory | {
            "B": weight.new_empty(rows, self.capacity, states),
            "x": weight.new_empty(rows, heads, self.capacity, head_width),
            "dt": weight.new_empty(rows, heads, self.capacity, dtype=wide),
        }

    def begin(self, inputs: Int[Tensor, " b"], memory: Memory, *, all_begin: bool) -> None:
        """Look up and project the classes of rows at position 0; the other rows keep theirs.

        Args:
            inputs: As for ``__call__``.
            memory: Of the rows; its condition and modulations are updated.
            all_begin: Every row is at position 0.
        """
        starting = memory["position"] == 0
        condition = self.model.condition(inputs.masked_fill(~starting, self.model.condition.null_class))
        final = self.model.final_adaln(F.silu(condition)).unflatten(-1, (2, -1))
        found = {"condition": condition, "modulation": self.model.adaln(condition), "final_modulation": final}
        for name, value in found.items():
            if not all_begin:
                value = torch.where(starting.view(-1, *[1] * (value.ndim - 1)), value, memory[name])  # noqa: PLW2901
            memory[name].copy_(value)

    def places(self, highest: int) -> int:
        """Places of the caches that a step must look at when the foremost row is at position ``highest``."""
        if self.model.config.mixer == "mamba2":
            return 0  # its kernels read the positions themselves
        return min(self.capacity, -(-(highest + 1) // _SEEN_TOGETHER) * _SEEN_TOGETHER)

    def __call__(self, inputs: Int[Tensor, " b"], memory: Memory, *, places: int) -> Float[Tensor, "b v"]:
        """Take one token a row and give the logits of its next code.

        ``memory`` is updated but for the positions, which the caller moves on.

        Args:
            inputs: For a row at position 0 anything, for ``begin`` has seen its class; for any other its latest code.
            memory: From ``new_memory``.
            places: From ``places``.
        """
        model, operators = self.model, self.operators
        residual = self._embed(inputs, memory)
        gate: Tensor | None = None
        before: dict[str, Tensor | int] = {}  # what the block before gives, still to be added to the residual
        for index, block in enumerate(model.blocks):
            shift, scale, next_gate = memory["modulation"][:, index].unbind(1)
            start, options = (block.norm.weight, shift, scale), {"gate": gate, **before}
            mixer = block.mixer
            if isinstance(mixer, Mamba2):
                weight = mixer.in_proj.weight
                projected, residual = operators.residual_linear_step(residual, *start, weight, **options)
                gated, squares = self._mix(mixer, projected, memory, index)
                mixed = operators.linear(gated, mixer.out_proj.weight)
                before = {"mixed": mixed, "squares": squares, "inner": mixer.inner}
            else:
                hidden = operators.residual_norm_step(residual, *start, **options)
                if isinstance(mixer, Attention):
                    cache = {name: memory[f"{index}.{name}"] for name in ("keys", "values")}
                    before = {"mixed": mixer.step_among(hidden, cache, memory["position"], places)}
                else:
                    before = {"mixed": mixer(hidden)}
            gate = next_gate
        shift, scale = memory["final_modulation"].unbind(1)
        final = model.final_norm.weight
        hidden = operators.residual_norm_step(
            residual, model.norm.weight, shift, scale, gate=gate, final_weight=final, **before
        )
        return operators.linear(hidden, model.word_embedding.weight)

    def _embed(self, inputs: Tensor, memory: Memory) -> Tensor:
        """The residual that the first block meets, float32 or wider."""
        model, position = self.model, memory["position"]
        starting = position == 0
        hidden = model.word_embedding(inputs.masked_fill(starting, 0))
        if model.position_embedding is not None:
            hidden = hidden + model.position_embedding((position - 1 + memory["shift"]).clamp(min=0))
        hidden = torch.where(starting[:, None], memory["condition"], hidden)
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32))

    def _mix(self, mixer: Mamba2, projected: Tensor, memory: Memory, index: int) -> tuple[Tensor, Tensor]:
        """The middle of a Mamba-2 mixer: its inner features, and the squares to find their norm's root from."""
        weights, position = mixer.mixer_weights, memory["position"]
        if self.form == "state":
            caches = [memory[f"{index}.{name}"] for name in ("window", "ssm")]
            return self.operators.state_mixer_step(projected, weights, *caches, position)
        caches = [memory[f"{index}.{name}"] for name in ("window", "B", "x", "dt")]
        return self.operators.dual_mixer_step(projected, weights, *caches, position)
