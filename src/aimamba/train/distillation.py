"""Guidance distillation: fine-tune a generator to give alone what it gave with classifier-free guidance.

A guided sample costs two rows of each decoding step. The frozen copy of the initial model teaches: at every code the
model is to have the distribution that the copy has with guidance of scale w, after the same codes,

    softmax(u + w (c - u)),

where c are the copy's logits with a condition and u those without. The loss is the Kullback-Leibler divergence of the
model from it, and there is no other. What Meng et al. (arXiv 2210.03142) do to diffusion models takes one stage here,
since the scale is fixed. Images that keep no condition, as in training, have c = u: they keep the unconditional model
where it is.

Shape letters: B batch, L codes of an image.
"""

import math

import torch
from torch import Tensor

from aimamba.data.codes import CaptionedBatch, CodeBatch
from aimamba.models import AiM
from aimamba.ops.loss.guided_divergence import sliced_guided_divergence
from aimamba.train.conditions import Conditions
from aimamba.train.frozen import FrozenCopyTask, hidden_states, log_likelihood, twice
from aimamba.train.task import Objective

_IMAGES_AT_ONCE = 32


class DistillationTask(FrozenCopyTask):
    """Distillation of a generator with guidance into one without."""

    def loss(
        self, model: AiM, batch: CodeBatch | CaptionedBatch, rng: torch.Generator, step: int | Tensor = 0
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the mean divergence of a code, in nats. Model and copy read the same codes, with the same dropout."""
        left_out = self.left_out(batch, rng)
        mask, read = self.token_mask(model, batch.codes, rng), self.noisy(batch.codes[:, :-1], rng, step)
        found = self._divergence(model, Conditions.of(batch), left_out, mask, read)
        return found.mean(), {}

    @torch.no_grad()
    def evaluate(self, model: AiM) -> dict[str, float]:
        """Return the mean divergence of held-out codes, in nats, and bits per code, with their conditions."""
        device, count = model.word_embedding.weight.device, len(self.held_out)
        total, likelihood = 0.0, 0.0
        for start in range(0, count, _IMAGES_AT_ONCE):
            codes, given = self.held_out_rows(model, range(start, min(start + _IMAGES_AT_ONCE, count)), device)
            none = torch.zeros_like(given.labels, dtype=torch.bool)
            total += float(self._divergence(model, given, (none, none), None, codes[:, :-1]).sum())
            likelihood += float(log_likelihood(model, given, codes, None, codes[:, :-1]).sum())
        codes_in_all = count * self.model.config.num_tokens
        return {"loss": total / codes_in_all, "bits_per_token": -likelihood / codes_in_all / math.log(2)}

    def objective(self) -> Objective:
        """Return the loss: a model that gives what guidance gave is worse in bits per token."""
        return Objective("loss")

    def _divergence(
        self, model: AiM, given: Conditions, left_out: tuple[Tensor, Tensor], mask: Tensor | None, read: Tensor
    ) -> Tensor:
        given = given.without(*left_out, null_class=model.condition.null_class)
        scale, checkpointing = self.config.distilled_scale, self.config.checkpointing
        return guided_divergence(
            model, self.copy_on(read.device), given, mask, read, scale, checkpointing=checkpointing
        )


def guided_divergence(
    model: AiM,
    teacher: AiM,
    given: Conditions,
    mask: Tensor | None,
    read: Tensor,
    scale: float,
    *,
    checkpointing: bool = False,
    logits_at_once: int | None = None,
) -> Tensor:
    """Return the divergence of a model from a guided teacher at each code (B L,), in nats.

    Args:
        model: The generator.
        teacher: Another one, which gets no gradient.
        given: The conditions.
        mask: Factors for the word embeddings (B, L - 1, D).
        read: What both read in place of the codes before each (B, L - 1).
        scale: Scale of guidance.
        checkpointing: See ``AiM.forward``.
        logits_at_once: See ``sliced_guided_divergence``.
    """
    everything = torch.ones_like(given.labels, dtype=torch.bool)
    both = given.and_of(given.without(everything, everything, null_class=model.condition.null_class))
    with torch.no_grad():
        conditional, unconditional = hidden_states(teacher, both, twice(mask), twice(read)).chunk(2)
    own = hidden_states(model, given, mask, read, checkpointing=checkpointing)
    heads = model.word_embedding.weight, teacher.word_embedding.weight
    return sliced_guided_divergence(
        own, heads[0], conditional, unconditional, heads[1], scale, logits_at_once=logits_at_once
    )
