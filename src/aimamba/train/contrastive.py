"""Condition contrastive alignment (CCA, Chen et al., arXiv 2410.09347): fine-tune a generator to need no guidance.

Guidance moves samples away from what is likely under any condition. CCA teaches that to the model itself. With r, the
logarithm of how much more likely an image is under a condition than in a frozen copy of the initial model, it minimises

    -log sigmoid(beta r(image, its condition)) - lambda log sigmoid(-beta r(image, the condition of another image))

over the images of a batch. Some images keep no condition, as in training; they have the first term alone, which keeps
the unconditional model where it is.

Shape letters: B batch, L codes of an image.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aimamba.config import check
from aimamba.data.codes import CaptionedBatch, CodeBatch, CodeSet
from aimamba.models import AiM
from aimamba.train.conditions import Conditions
from aimamba.train.frozen import FrozenCopyTask, log_likelihood, twice
from aimamba.train.settings import FitConfig
from aimamba.train.task import Objective

_IMAGES_AT_ONCE = 32
_SAME = "task.objective = 'cca' contrasts conditions, and all {what} images have the same one; add images"


class Contrast(NamedTuple):
    """What the images of a batch say about a model.

    Attributes:
        loss: The loss of each image (B,), see the module.
        positive: r of each image with its own condition (B,).
        negative: r with the condition of another image (B,).
        paired: Which images have such another condition (B,).
        likelihood: Logarithm of the likelihood of each image's codes with its own condition (B,).
    """

    loss: Tensor
    positive: Tensor
    negative: Tensor
    paired: Tensor
    likelihood: Tensor

    def metrics(self) -> dict[str, Tensor]:
        """Return the mean loss, and the means over the images that have both conditions."""
        count = self.paired.sum().clamp(min=1)
        right = self.positive > self.negative
        means = {"positive": self.positive, "negative": self.negative, "accuracy": right}
        means = {name: (each * self.paired).sum() / count for name, each in means.items()}
        return {"loss": self.loss.detach().mean(), **means}


class ContrastiveTask(FrozenCopyTask):
    """Condition contrastive alignment of a generator with a frozen copy of it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take the arguments of ``GeneratorTask``.

        Raises:
            ConfigError: All images have one condition, so there is nothing to contrast.
        """
        super().__init__(*arguments, **options)
        for codes, what in ((self.train, "training"), (self.held_out, "held-out")):
            several = _several(codes, captioned=self.model.config.text is not None)
            check(several, _SAME.format(what=f"{len(codes):,} {what}"))

    def loss(
        self, model: AiM, batch: CodeBatch | CaptionedBatch, rng: torch.Generator, step: int | Tensor = 0
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the loss of a batch over the larger of 1 and lambda, and as metrics the loss and means of r.

        Model and frozen copy read the same codes, with the same dropout.
        """
        bare, mute = self.left_out(batch, rng)
        mask, read = self.token_mask(model, batch.codes, rng), self.noisy(batch.codes[:, :-1], rng, step)
        found = self._contrast(model, batch.codes, Conditions.of(batch), (bare, mute), mask, read)
        # As in the official code, so that the norm of the gradient, which is clipped, does not grow with lambda.
        return found.loss.mean() / max(1.0, self.config.cca_lambda), {**found.metrics()}

    @torch.no_grad()
    def evaluate(self, model: AiM) -> dict[str, float]:
        """Return the loss, means of r, accuracy, and bits per code on held-out images, none without its condition."""
        device, count = model.word_embedding.weight.device, len(self.held_out)
        order = np.random.default_rng(0).permutation(count)  # sets lie in the order of their classes
        found = []
        for chosen in np.array_split(order, math.ceil(count / _IMAGES_AT_ONCE)):
            codes, given = self.held_out_rows(model, chosen.tolist(), device)
            none = torch.zeros_like(given.labels, dtype=torch.bool)
            found.append(self._contrast(model, codes, given, (none, none), None, codes[:, :-1], alone=True))
        whole = Contrast(*map(torch.cat, zip(*found, strict=True)))
        metrics = {name: float(value) for name, value in whole.metrics().items()}
        bits = -float(whole.likelihood.mean()) / math.log(2) / self.model.config.num_tokens
        return {**metrics, "bits_per_token": bits}

    def objective(self) -> Objective:
        """Return the loss: guidance, and so a model that needs none, is worse in bits per token."""
        return Objective("loss")

    def _contrast(
        self,
        model: AiM,
        codes: Tensor,
        given: Conditions,
        left_out: tuple[Tensor, Tensor],
        mask: Tensor | None,
        read: Tensor,
        *,
        alone: bool = False,
    ) -> Contrast:
        beta, null_class = self.config.cca_beta, model.condition.null_class
        bare, mute = left_out
        if given.captions is not None:
            mute = mute | ~given.captions.flatten(1).any(dim=1)
        others, paired = given.others(bare, mute, alone=alone)
        own, others = (each.without(bare, mute, null_class=null_class) for each in (given, others))
        both = own.and_of(others)
        inputs = twice(codes), twice(mask), twice(read)
        with torch.no_grad():
            before = log_likelihood(self.copy_on(codes.device), both, *inputs)
        after = log_likelihood(model, both, *inputs, checkpointing=self.config.checkpointing)
        positive, negative = (after - before).chunk(2)
        loss = -F.logsigmoid(beta * positive) - self.config.cca_lambda * paired * F.logsigmoid(-beta * negative)
        return Contrast(loss, positive.detach(), negative.detach(), paired, after[: len(codes)].detach())


def check_contrast(config: FitConfig, conditions: int | None) -> None:
    """Check that a run has something to contrast, as far as that is known before its images are encoded.

    Args:
        config: The settings of its loop.
        conditions: How many conditions the images have at most; None where they have captions.

    Raises:
        ConfigError: It has not.
    """
    check(conditions is None or conditions > 1, _SAME.format(what="training"))
    check_pairs(config)


def check_pairs(config: FitConfig) -> None:
    """Check that a part of a batch has images to contrast.

    Raises:
        ConfigError: It has one.
    """
    rows = config.batch_size // config.accumulation
    check(
        rows > 1,
        "task.objective = 'cca' contrasts the images of a part of a batch, and fit.batch_size / fit.accumulation is "
        f"{rows}; it must be at least 2",
    )


def _several(codes: CodeSet, *, captioned: bool) -> bool:
    """Return whether images of a set have different conditions."""
    if len(np.unique(codes.labels)) > 1:
        return True
    captions = codes.captions if captioned else None
    return captions is not None and len({one for index in range(len(captions)) for one in captions[index]}) > 1
