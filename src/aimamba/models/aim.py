"""The generator: a causal sequence model over the codes of an image (AiM, arXiv 2408.12245).

The condition vector, as that of a class, is both a token and the condition of every adaptive norm. Prefix tokens, if
there are any, come before it, and the codes follow in raster order; the output at each position predicts the next code.

Shape letters: B batch, L tokens of an image, P prefix tokens, D width, V vocabulary, N blocks.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from aimamba.checkpoints.official import aim_from_official
from aimamba.errors import ConfigError
from aimamba.models.adaln import make_adaln
from aimamba.models.aim_config import AiMConfig, BlockMixer
from aimamba.models.condition import ClassCondition, Given, empty_embedding
from aimamba.models.mixers import make_mixer
from aimamba.models.norm import RMSNorm
from aimamba.models.pretrained import PretrainedModel
from aimamba.models.state import AiMState, MixerState
from aimamba.models.text import Captions, TextCondition
from aimamba.ops.cache import Position, common
from aimamba.ops.linear.linear import linear
from aimamba.ops.norm.modulated import residual_modulated_norm
from aimamba.ops.norm.rms import modulated_rms_norm_step

BEGUN = -1
"""The input of a row that still takes vectors of its opening, which the state holds, rather than a code."""


class Block(nn.Module):
    """Compute ``mixer(norm(residual) * (1 + scale) + shift)``, to be added to the residual times a gate."""

    def __init__(self, kind: BlockMixer, config: AiMConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.width)
        self.mixer = make_mixer(kind, config)

    def forward(
        self,
        residual: Float[Tensor, "b l d"],
        mixed: Float[Tensor, "b l d"] | None,
        gate: Float[Tensor, "b d"] | None,
        shift: Float[Tensor, "b d"],
        scale: Float[Tensor, "b d"],
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
        """Add the previous block's output to the residual, and process all tokens in parallel.

        Args:
            residual: Float32 or wider.
            mixed: Output of the previous block; None for the first block.
            gate: Gate of the previous block; None for the first block.
            shift: Shift of this block.
            scale: Scale of this block.

        Returns:
            The new residual, and the output of this block, which the next one adds.
        """
        residual, hidden = residual_modulated_norm(residual, mixed, gate, self.norm.weight, scale, shift)
        return residual, self.mixer(hidden)

    def step(
        self,
        residual: Float[Tensor, "b d"],
        modulation: Sequence[Float[Tensor, "b d"]],
        state: MixerState,
        position: Position,
    ) -> Float[Tensor, "b d"]:
        """Process one token of each row; the modulation is shift, scale and gate, in the dtype of the residual."""
        shift, scale, gate = modulation
        hidden = modulated_rms_norm_step(residual, self.norm.weight, scale, shift).to(self.mixer.in_proj.weight.dtype)
        return torch.addcmul(residual, gate, self.mixer.step(hidden, state, position))


class AiM(PretrainedModel[AiMConfig]):
    """Autoregressive image generator on Mamba-2, or on other mixers."""

    config_class = AiMConfig
    since: ClassVar = {"hybrid_every": 0, "hybrid_mixer": "attention", "text.ngrams": 0}
    folder_in_pipeline = "generator"
    official_reader = staticmethod(aim_from_official)
    companions = ("tokenizer",)

    def __init__(self, config: AiMConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.condition = (
            ClassCondition(config.num_classes, width)
            if config.text is None
            else TextCondition(config.text, config.num_classes, width)
        )
        self.word_embedding = empty_embedding(config.vocab_size, width)
        # One more row than there are codes: decoding may shift the place of a code by one.
        self.position_embedding = (
            empty_embedding(config.num_tokens + 1, width) if config.positions == "learned" else None
        )
        self.adaln = make_adaln(config.adaln, width=width, blocks=config.num_blocks, groups=config.adaln_groups)
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(kind, config) for kind in config.block_mixers
        )
        self.norm = RMSNorm(width)
        self.final_norm = RMSNorm(width)
        self.final_adaln = nn.Linear(width, 2 * width)
        if not self.word_embedding.weight.is_meta:  # on meta, random numbers would import the compiler: over a second
            self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter with random numbers from ``generator`` (by default torch's global one).

        =================  ================================================================
        condition          see ``aimamba.models.condition``
        embeddings         normal, standard deviation 0.02
        mixers             their ``init_weights``; output projections scaled by 1 / sqrt(N)
        adaln              see ``aimamba.models.adaln``
        final_adaln        zero, so that the final modulation starts as the identity
        norms              1
        output head        tied to the word embedding
        =================  ================================================================
        """
        self.condition.init_weights(generator)
        for embedding in (self.word_embedding, self.position_embedding):
            if embedding is not None:
                embedding.weight.normal_(std=0.02, generator=generator)
        self.adaln.init_weights(generator)
        for block in self.blocks:
            block.norm.weight.fill_(1.0)
            block.mixer.init_weights(residual_scale=self.config.num_blocks**-0.5, generator=generator)
        for norm in (self.norm, self.final_norm):
            norm.weight.fill_(1.0)
        self.final_adaln.weight.zero_()
        self.final_adaln.bias.zero_()

    def cast(self, dtype: torch.dtype) -> "AiM":
        """Set the dtype of the weights. Norms, decays and step sizes stay float32 or wider."""
        wide = torch.promote_types(dtype, torch.float32)
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                kept = name in getattr(module, "WIDE", ())
                parameter.data = parameter.data.to(wide if kept else dtype)
        return self

    def embed(
        self, codes: Int[Tensor, "*b"], place: Int[Tensor, "*_"], token_mask: Float[Tensor, "*b d"] | None = None
    ) -> Float[Tensor, "*b d"]:
        """Look up the embeddings of codes and add those of their positions.

        Args:
            codes: Any shape.
            place: Place of each code in the image, counted from 0; broadcast against ``codes``.
            token_mask: Multiplied with the word embeddings, for dropout.
        """
        embedded = self.word_embedding(codes) if token_mask is None else self.word_embedding(codes) * token_mask
        return embedded if self.position_embedding is None else embedded + self.position_embedding(place)

    def modulations(self, condition: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b n 3 d"], Float[Tensor, "b 2 d"]]:
        """Project class vectors to the modulations of the blocks (B, N, 3, D) and of the final norm (B, 2, D)."""
        final = self.final_adaln(F.silu(condition)).unflatten(-1, (2, -1))
        return self.adaln(condition), final

    def forward(
        self,
        codes: Int[Tensor, "b l1"],
        labels: Given,
        captions: Captions | None = None,
        *,
        position_shift: int = 0,
        places: Int[Tensor, "b l1"] | None = None,
        added: Float[Tensor, "b l d"] | None = None,
        token_mask: Float[Tensor, "b l1 d"] | None = None,
        head: bool = True,
        checkpointing: bool = False,
        states: dict[int, Tensor | None] | None = None,
    ) -> Float[Tensor, "b l v"]:
        """Return the logits of every code given the condition and the codes before it.

        Args:
            codes: All codes of the image but the last, (B, L - 1), or any shorter prefix.
            labels: Class labels; ``num_classes`` is the null class. Or mixtures of classes: a weight for each. Or
                openings, see ``aimamba.models.condition``.
            captions: A caption for each image, see ``aimamba.models.text``; None for none.
            position_shift: Added to the place of every code. Models are trained with 0.
            places: Place of each code in the image, where they are in another order than raster.
            added: Added to the condition vector and the embeddings of the codes, of which each predicts one code.
            token_mask: Multiplied with the word embeddings, for dropout.
            head: Whether to apply the tied head, ``word_embedding.weight``.
            checkpointing: Whether to keep only the input of each block for the backward pass and recompute the rest.
            states: Its keys are numbers of blocks from 1 on; set to the hidden states (B, L, D) after so many.

        Returns:
            Logits (B, L, V), of which index t predicts code t. Without the head, its input (B, L, D).

        Raises:
            ConfigError: The codes are those of a whole image or more: nothing follows the last one. Or what is given
                does not fit.
        """
        if codes.shape[1] >= (length := self.config.num_tokens):
            raise ConfigError(
                f"AiM predicts each of {length} codes from those before it and takes {length - 1} of them at most, got "
                f"{codes.shape[1]}; leave out the last: codes[:, :-1]"
            )
        opening = self.condition.opening(labels, captions)
        modulation, final_modulation = self.modulations(opening[:, -1])
        raster = torch.arange(codes.shape[1], device=codes.device)
        place = (raster if places is None else places) + position_shift
        embedded = self.embed(codes, place, token_mask)
        if added is None:
            hidden = torch.cat([opening, embedded], dim=1)
        else:
            hidden = torch.cat([opening[:, :-1], torch.cat([opening[:, -1:], embedded], dim=1) + added], dim=1)
        residual = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        mixed = gate = None
        prefix, wanted = self.config.prefix_tokens, {} if states is None else states
        for before, (block, of_block) in enumerate(zip(self.blocks, modulation.unbind(1), strict=True)):
            shift, scale, next_gate = of_block.unbind(1)  # each (B, D)
            given = residual, mixed, gate, shift, scale
            if checkpointing:
                # Blocks draw no random numbers, and reading their state would wait for a device.
                residual, mixed = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                residual, mixed = block(*given)
            gate = next_gate
            if before in wanted:  # to which this block has added the output of the one before
                wanted[before] = residual[:, prefix:]
        assert mixed is not None  # there is a block
        assert gate is not None
        shift, scale = final_modulation.unbind(1)
        residual, hidden = residual_modulated_norm(
            residual, mixed, gate, self.final_norm.weight, scale, shift, before=self.norm.weight
        )
        hidden = hidden[:, prefix:]
        if len(self.blocks) in wanted:
            wanted[len(self.blocks)] = residual[:, prefix:]
        return linear(hidden, self.word_embedding.weight) if head else hidden

    def init_state(self, batch: int, *, position_shift: int | None = None) -> AiMState:
        """Return the state of rows at position 0.

        Args:
            batch: Number of rows.
            position_shift: Added to the place of every code; by default ``config.decode_position_shift``.
        """
        config, weight = self.config, self.word_embedding.weight
        shift = config.decode_position_shift if position_shift is None else position_shift
        return AiMState(
            position=torch.zeros(batch, dtype=torch.long, device=weight.device),
            position_shift=torch.full((batch,), shift, device=weight.device),
            opening=weight.new_zeros(batch, config.prefix_tokens + 1, config.width),
            modulation=weight.new_zeros(batch, config.num_blocks, 3, config.width),
            final_modulation=weight.new_zeros(batch, 2, config.width),
            mixers=[block.mixer.init_state(batch, config.steps + 1) for block in self.blocks],
        )

    def openings(self, given: Given, captions: Captions | None = None) -> Float[Tensor, "b p1 d"]:
        """Return what comes before the codes of each image, computed alone; see ``ClassCondition.opening``."""
        if self.config.text is None or given.ndim == 3 or len(given) == 0:
            return self.condition.opening(given, captions)
        alone = range(len(given))
        texts = [None if captions is None else captions[i : i + 1] for i in alone]
        return torch.cat([self.condition.opening(given[i : i + 1], texts[i]) for i in alone])

    def begun(self, given: Int[Tensor, " b"] | Float[Tensor, "b p1 d"]) -> dict[str, Tensor]:
        """Return what a state keeps of its rows' conditions: ``opening``, ``modulation``, ``final_modulation``.

        Each distinct condition is computed once and alone: the rounding of a matrix product depends on its number of
        rows, and an image must not depend on the rest of its batch.

        Args:
            given: Class labels, or openings, see ``ClassCondition``.
        """
        opening = self.openings(given)
        distinct, which = torch.unique(opening[:, -1], dim=0, return_inverse=True)
        modulation, final_modulation = zip(*(self.modulations(one) for one in distinct.split(1)), strict=True)
        return {
            "opening": opening,
            "modulation": torch.cat(modulation)[which],
            "final_modulation": torch.cat(final_modulation)[which],
        }

    def begin(
        self, given: Int[Tensor, " b"] | Float[Tensor, "b p1 d"], state: AiMState, rows: Bool[Tensor, " b"]
    ) -> None:
        """Let rows at position 0 begin: ``state`` keeps their openings and modulations for the whole image.

        Args:
            given: For every row, see ``begun``.
            state: Updated, except for its positions.
            rows: Which rows begin. The others keep what they have.
        """
        for name, new in self.begun(given).items():
            old = getattr(state, name)
            setattr(state, name, torch.where(rows.view(-1, *[1] * (new.ndim - 1)), new.to(old.dtype), old))

    def enter(self, inputs: Int[Tensor, " b"] | Float[Tensor, "b p1 d"], state: AiMState) -> Float[Tensor, "b d"]:
        """Return the vector of each row's input, with which a step begins.

        Args:
            inputs: As for ``step``.
            state: Rows at position 0 begin, see ``begin``. The position is not updated.
        """
        if inputs.is_floating_point():
            assert not bool(state.position.any()), "openings are the input of rows at position 0 alone"
            self.begin(inputs, state, state.position == 0)
            return state.opening[:, 0]
        prefix = self.config.prefix_tokens
        starting = (state.position == 0) & (inputs != BEGUN)
        if bool(starting.any()):
            self.begin(torch.where(starting, inputs, self.condition.null_class), state, starting)
        place = state.position - 1 - prefix + state.position_shift
        opened = state.position > prefix
        if bool(opened.all()):
            return self.embed(inputs, place)
        rows = torch.arange(len(inputs), device=inputs.device)
        vectors = state.opening[rows, state.position.clamp(max=prefix)]
        codes = self.embed(torch.where(opened, inputs, 0), place.clamp(min=0))
        return torch.where(opened[:, None], codes, vectors)

    def step(self, inputs: Int[Tensor, " b"] | Float[Tensor, "b p1 d"], state: AiMState) -> Float[Tensor, "b v"]:
        """Feed one token of each row and return the logits of its next code.

        Args:
            inputs: The class label of a row at position 0, ``BEGUN`` for one that has its opening and takes a vector of
                it, and the latest code of any other row. Or, where all rows are at position 0, their openings, see
                ``ClassCondition``.
            state: From ``init_state``, and updated. Its rows may be at different positions.
        """
        hidden = self.enter(inputs, state)
        residual = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        position = common(state.position)
        modulations = [each.unbind(1) for each in state.modulation.to(residual.dtype).unbind(1)]
        for block, modulation, mixer in zip(self.blocks, modulations, state.mixers, strict=True):
            residual = block.step(residual, modulation, mixer, position)
        state.position = state.position + 1
        return self._logits(residual, state.final_modulation)

    def _logits(self, residual: Float[Tensor, "b d"], final_modulation: Float[Tensor, "b 2 d"]) -> Float[Tensor, "b v"]:
        """Apply what follows the blocks to one token of each row: both norms, the modulation, the tied head."""
        shift, scale = final_modulation.unbind(1)
        hidden = self.final_norm(self.norm(residual)).to(shift.dtype) * (1 + scale) + shift
        return linear(hidden, self.word_embedding.weight)
