"""A decoding step that can be recorded: its shapes, addresses and operations are the same for every token.

It computes the same as ``AiM.step`` but never waits for the device: the caller counts tokens and so knows whether any
row is at position 0, and what the highest position is. It can also run eagerly, on every device.

Shape letters: B rows, D width, N blocks, V vocabulary, T tokens that a cache holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.models import AiM
from aimamba.models.aim import BEGUN
from aimamba.models.attention import Attention
from aimamba.models.mamba2 import Mamba2
from aimamba.ops import triton as triton_kernels
from aimamba.ops.embedding.step import embed_step
from aimamba.ops.linear.linear import linear, split_linear
from aimamba.ops.linear.residual import residual_linear_step
from aimamba.ops.mixer import step as mixer_ops
from aimamba.ops.norm.residual import residual_norm_step
from aimamba.ops.sampling import logits

Memory = dict[str, Tensor]
"""Everything that is remembered of some rows: named tensors whose first axis is the row."""

Form = Literal["state", "dual", "folded"]

Cache = Literal["model", "int8"]
"""How x of earlier tokens is cached: in the model's dtype, or in 8 bits with one scale a head and token."""

FOLD_EVERY = 64  # tokens, after the first fold
_GAIN = 0.8  # of the bytes of another form
_SLOTS_STEP = 16  # caches of the dual form hold a multiple of so many tokens
_PLACES_STEP = 64  # attention reads a multiple of so many cache entries, so that few recordings serve all positions


@dataclass(frozen=True)
class Operators:
    """Functions that a step calls; the defaults are in plain PyTorch."""

    state_mixer_step: Callable[..., tuple[Tensor, Tensor]] = mixer_ops.state_mixer_step
    dual_mixer_step: Callable[..., tuple[Tensor, Tensor]] = mixer_ops.dual_mixer_step
    folded_mixer_step: Callable[..., tuple[Tensor, Tensor]] = mixer_ops.folded_mixer_step
    residual_norm_step: Callable[..., Tensor] = residual_norm_step
    residual_linear_step: Callable[..., tuple[Tensor, Tensor]] = residual_linear_step
    linear: Callable[..., Tensor] = linear
    split_linear: Callable[..., Tensor] = split_linear
    embed_step: Callable[..., Tensor] = embed_step
    guided_sample: Callable[..., Tensor] = logits.guided_sample


def unsupported(model: AiM) -> str | None:
    """Return the reason why the Triton kernels cannot decode the model, or None."""
    config = model.config
    kinds = dict.fromkeys(config.block_mixers)
    if set(kinds) not in ({"mamba2"}, {"attention", "feed-forward"}):
        return f"it decodes the mixer mamba2 or attention, not {' with '.join(kinds)}"
    for name in ("state_size", "head_width"):
        size = getattr(config, name)
        if config.mixer == "mamba2" and size & (size - 1):
            return f"{name} must be a power of two, got {size}"
    return triton_kernels.unsupported()


def triton_operators(*, overlap: bool = True) -> Operators:
    """Return the functions as Triton kernels, for models that are not ``unsupported``.

    With ``overlap`` a kernel starts while the one before it still runs, where the device can, and reads its weights and
    caches. That is safe in a step, because none of them is written there before the kernel that reads it.
    """
    from aimamba.ops.embedding.triton import step as embedding  # noqa: PLC0415 - imports Triton
    from aimamba.ops.linear.triton import linear as products  # noqa: PLC0415
    from aimamba.ops.mixer.triton import folded  # noqa: PLC0415
    from aimamba.ops.mixer.triton import step as mixer  # noqa: PLC0415
    from aimamba.ops.norm.triton import residual as norms  # noqa: PLC0415
    from aimamba.ops.sampling.triton import logits as sampling  # noqa: PLC0415

    return Operators(
        partial(mixer.state_mixer_step, overlap=overlap),
        partial(mixer.dual_mixer_step, overlap=overlap),
        partial(folded.folded_mixer_step, overlap=overlap),
        partial(norms.residual_norm_step, overlap=overlap),
        partial(products.residual_linear_step, overlap=overlap),
        partial(products.linear, overlap=overlap),
        partial(products.split_linear, overlap=overlap),
        embedding.embed_step,
        sampling.guided_sample,
    )


def bytes_per_row(model: AiM, form: Form, tokens: int, cache: Cache = "model") -> int:
    """Return the bytes that a Mamba-2 block reads and writes for one token of a row, after ``tokens`` tokens."""
    config, narrow = model.config, model.word_embedding.weight.element_size()
    inner = config.inner
    state = 4 * inner * config.state_size
    if form == "state":
        return 2 * state
    # A token's weight decays in place, so it is read and written. The scale of an 8-bit x is part of it.
    x = inner * (1 if cache == "int8" else narrow)
    heads = inner // config.head_width
    token = x + narrow * config.state_size + 2 * 4 * heads
    if form == "dual":
        return (tokens + 1) * token
    first = first_fold(model, cache)
    begun = tokens >= first
    cached, most = ((tokens - first) % FOLD_EVERY, FOLD_EVERY) if begun else (tokens, first)
    moved = (cached + 1) * token
    if begun:  # the state, and how far it has decayed
        moved += state + 2 * 4 * heads
    if cached + 1 == most:  # what is folded is read again, and the state is written
        moved += cached * token + (2 if begun else 1) * state
    return moved


def first_fold(model: AiM, cache: Cache = "model") -> int:
    """Return how many tokens are cached before the first fold: those that take the bytes of the state and of a replay.

    A replay is of half the tokens between two folds in the mean.
    """
    narrow = 1 if cache == "int8" else model.word_embedding.weight.element_size()
    tokens = 4 * model.config.state_size // narrow + FOLD_EVERY // 2
    return max(FOLD_EVERY, -(-tokens // _SLOTS_STEP) * _SLOTS_STEP)


def choose_form(model: AiM, cache: Cache = "model") -> Form:
    """Return the form of SSD that moves the fewest bytes over a whole image.

    Fold and replay, whose speed has not been measured, must move a fifth less than the others.
    """

    def moved(form: Form) -> int:
        return sum(bytes_per_row(model, form, tokens, cache) for tokens in range(model.config.steps))

    measured: tuple[Form, ...] = ("dual", "state")
    best = min(measured, key=moved)
    return "folded" if moved("folded") < _GAIN * moved(best) else best


class RecordedStep:
    """``AiM.step`` on a memory that is updated in place.

    Args:
        model: The generator, in bfloat16, float32 or wider.
        operators: Plain functions, or kernels.
        form: Form of SSD; by default see ``choose_form``.
        cache: How tokens' x is cached. The state form has no such cache.
    """

    def __init__(
        self, model: AiM, operators: Operators | None = None, *, form: Form | None = None, cache: Cache = "model"
    ) -> None:
        self.model = model
        self.operators = operators or Operators()
        self.form = form or choose_form(model, cache)
        self.cache = cache
        self.capacity = model.config.steps + 1
        self.renew()

    def renew(self) -> None:
        """Prepare for weights of another dtype or on another device. Steps recorded before are of no use then."""
        with torch.inference_mode(False):  # otherwise a caller outside inference mode could not write to them
            self._taps = self._stacked_taps().contiguous() if self._convolutions else None

    @property
    def _convolutions(self) -> list[Tensor]:
        return [block.mixer.conv_weight for block in self.model.blocks if isinstance(block.mixer, Mamba2)]

    @torch.no_grad()
    def _stacked_taps(self) -> Float[Tensor, "n k c"]:
        """Return the taps of all convolutions, those of one age side by side, as threads read them."""
        return torch.stack(self._convolutions).mT

    def new_memory(self, rows: int) -> Memory:
        """Return the memory of rows at position 0. Steps write everything but the positions before reading it."""
        model, config = self.model, self.model.config
        weight = model.word_embedding.weight
        memory = {
            "position": torch.zeros(rows, dtype=torch.long, device=weight.device),
            "position_shift": torch.zeros(rows, dtype=torch.long, device=weight.device),
            "opening": weight.new_zeros(rows, config.prefix_tokens + 1, config.width),
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
        if self.form == "folded":
            memory["folded"] = weight.new_empty(rows, heads, head_width, states, dtype=wide)
            memory["carry"] = weight.new_empty(rows, heads, dtype=wide)
            slots = first_fold(self.model, self.cache)
        else:  # every head's weights begin at a multiple of 64 bytes, so that a thread loads several at once
            slots = -(-self.model.config.steps // _SLOTS_STEP) * _SLOTS_STEP
        return memory | {
            "B": weight.new_empty(rows, slots, states),
            "x": weight.new_empty(rows, heads, slots, head_width, dtype=torch.int8 if self.cache == "int8" else None),
            "weights": weight.new_empty(rows, heads, slots, dtype=wide),
        }

    def begin(self, inputs: Int[Tensor, " b"] | Float[Tensor, "b p1 d"], memory: Memory) -> None:
        """Compute openings and modulations of rows at position 0; other rows keep theirs.

        Args:
            inputs: Class labels of the rows at position 0, any label for the others; or openings of all. Rows that
                have been given ``BEGUN`` keep what they have.
            memory: Its openings and modulations are updated.
        """
        if self._taps is not None:
            self._taps.copy_(self._stacked_taps())  # weights may have changed in place
        starting, null_class = memory["position"] == 0, self.model.condition.null_class
        if not inputs.is_floating_point():
            starting = starting & (inputs != BEGUN)
            inputs = inputs.masked_fill(~starting, null_class)
        opening = self.model.condition.opening(inputs).to(memory["opening"].dtype)
        modulation, final_modulation = self.model.modulations(opening[:, -1])
        found = {"opening": opening, "modulation": modulation, "final_modulation": final_modulation}
        for name, value in found.items():
            rows = starting.view(-1, *[1] * (value.ndim - 1))
            memory[name].copy_(torch.where(rows, value, memory[name]))

    def places(self, highest: int) -> int:
        """Return how many cache entries a step must read when the highest position of a row is ``highest``."""
        if self.model.config.mixer == "mamba2":
            return 0  # its kernels read the positions on the device
        return min(self.capacity, -(-(highest + 1) // _PLACES_STEP) * _PLACES_STEP)

    def __call__(self, inputs: Int[Tensor, " b"], memory: Memory, *, places: int) -> Float[Tensor, "b v"]:
        """Feed one token of each row and return the logits of its next code.

        Args:
            inputs: The latest code of each row. Ignored for rows that take a vector of their opening.
            memory: From ``new_memory``. It is updated, except for the positions, which the caller increments.
            places: From ``places``.
        """
        model, operators = self.model, self.operators
        places_table = None if model.position_embedding is None else model.position_embedding.weight
        residual = operators.embed_step(
            inputs, *(memory[name] for name in ("position", "position_shift", "opening")),
            model.word_embedding.weight, places_table,
        )  # fmt: skip
        gate: Tensor | None = None
        before: dict[str, Tensor | int] = {}  # output of the previous block, not yet added to the residual
        for index, block in enumerate(model.blocks):
            shift, scale, next_gate = memory["modulation"][:, index].unbind(1)
            start, options = (block.norm.weight, shift, scale), {"gate": gate, **before}
            mixer = block.mixer
            if isinstance(mixer, Mamba2):
                weight = mixer.in_proj.weight
                projected, residual = operators.residual_linear_step(residual, *start, weight, **options)
                gated, squares = self._mix(mixer, projected, memory, index)
                mixed = operators.split_linear(gated, mixer.out_proj.weight)
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

    def _mix(self, mixer: Mamba2, projected: Tensor, memory: Memory, index: int) -> tuple[Tensor, Tensor]:
        """Compute the middle of a Mamba-2 mixer: its inner features, and their squares for the norm."""
        assert self._taps is not None
        weights = mixer.mixer_weights._replace(conv_weight=self._taps[index].t())
        position = memory["position"]
        if self.form == "state":
            caches = [memory[f"{index}.{name}"] for name in ("window", "ssm")]
            return self.operators.state_mixer_step(projected, weights, *caches, position)
        caches = [memory[f"{index}.{name}"] for name in ("window", "B", "x", "weights")]
        if self.form == "folded":
            caches += [memory[f"{index}.{name}"] for name in ("folded", "carry")]
            return self.operators.folded_mixer_step(projected, weights, *caches, position, every=FOLD_EVERY)
        return self.operators.dual_mixer_step(projected, weights, *caches, position)
