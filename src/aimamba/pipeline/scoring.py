"""How likely images are: bits of every token, and the class under which an image is likeliest.

Shape letters: B images, C classes, L tokens of an image, h w grid of codes.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aimamba.errors import ConfigError, DataError
from aimamba.generation.plan import Labels, check_codes, check_labels
from aimamba.inference import Inference, undisturbed
from aimamba.pipeline.core import PipelineCore
from aimamba.pipeline.images import Fit, Images
from aimamba.pipeline.prompts import Class, listed

_FORWARD_AT_ONCE = 64  # images, where the rounding of one may depend on the others


class Score(NamedTuple):
    """How surprising images are to the generator: minus the base-2 logarithm of their probability.

    Attributes:
        bits: Of each image, (B,).
        bits_per_token: The mean over its tokens, (B,).
        maps: Of every token, given the class and the tokens before it, (B, h, w).
    """

    bits: Float[Tensor, " b"]
    bits_per_token: Float[Tensor, " b"]
    maps: Float[Tensor, "b h w"]


class Scoring(PipelineCore):
    """Likelihoods of images. They are those of the codes: what the tokenizer leaves out does not count."""

    def score(self, images: Images, labels: Class | Iterable[Class] | None = None, *, fit: Fit = "exact") -> Score:
        """Return how many bits images take under the generator.

        On CPUs, the score of an image does not depend on the rest of its batch.

        Args:
            images: One or several, see ``encode``.
            labels: A class, a mixture or a prompt, for all images or one for each; None for the null class, that is
                without one.
            fit: See ``encode``.

        Raises:
            DataError: An image does not fit; or there are as many classes as neither one nor B.
            ConfigError: There is no such class.
        """
        codes = self.encode(images, fit=fit)
        bits = self.bits(codes, self.labels_of(labels, len(codes)))
        return Score(bits.sum(dim=1), bits.mean(dim=1), bits.unflatten(1, (self.grid, self.grid)))

    def classify(
        self, images: Images, among: Iterable[Class] | None = None, *, fit: Fit = "exact"
    ) -> Float[Tensor, "b c"]:
        """Return the probability of every class or prompt given each image, if all are equally frequent.

        The generator is used as a classifier: by Bayes' rule, the probabilities are proportional to those of the image
        under each class. They are close to 0 and 1, since the tokens of an image are many.

        Args:
            images: One or several, see ``encode``.
            among: Classes, mixtures or prompts to choose from (C of them); by default all classes.
            fit: See ``encode``.

        Returns:
            Probabilities (B, C), on the generator's device.

        Raises:
            DataError: An image does not fit.
            ConfigError: There is no such class, or none to choose from.
        """
        among = None if among is None else listed(among)
        if among == []:
            raise ConfigError("classify has nothing to choose from; name some classes or prompts")
        given = None if among is None else self.labels(among)
        return self.log_likelihoods(self.encode(images, fit=fit), given=given).softmax(dim=-1)

    @Inference()
    def bits(self, codes: Tensor, labels: Labels) -> Float[Tensor, "b l"]:
        """Return the bits of every token of images given by their codes, (B, L) or (B, h, w).

        Raises:
            DataError: Codes or labels do not fit.
            ConfigError: Mixtures do not fit.
        """
        model = self.generator
        device = model.word_embedding.weight.device
        check_labels(model, labels)
        codes = check_codes(model, codes.to(device), len(labels), "codes")
        if codes.shape[1] != model.config.num_tokens:
            raise DataError(f"expected the {model.config.num_tokens} codes of whole images, got {codes.shape[1]}")
        parts = 1 if device.type == "cpu" else _FORWARD_AT_ONCE
        found = [
            self._bits(some, given)
            for some, given in zip(codes.split(parts), labels.to(device).split(parts), strict=True)
        ]
        with torch.inference_mode(mode=False):
            return torch.cat(found).clone()

    @Inference()
    def log_likelihoods(
        self,
        codes: Int[Tensor, "b l"],
        counted: Bool[Tensor, "b l"] | None = None,
        given: Tensor | None = None,
    ) -> Float[Tensor, "b c"]:
        """Return the natural logarithm of the probability of images, given by their codes, under every class.

        Args:
            codes: All tokens of the images.
            counted: Which tokens count; by default all. The others are still what later ones follow.
            given: What to choose from, as ``labels`` returns it; by default every class.
        """
        classes = torch.arange(self.generator.config.num_classes) if given is None else given
        classes = classes.to(codes.device)
        rows = []
        for index, image in enumerate(codes):  # alone, so that rounding is the same in every batch
            parts = [self._bits(image.expand(len(some), -1), some) for some in classes.split(_FORWARD_AT_ONCE)]
            bits = torch.cat(parts)
            rows.append((bits if counted is None else bits * counted[index].to(bits.device)).sum(dim=1))
        with torch.inference_mode(mode=False):
            return torch.stack(rows).clone() * -math.log(2)

    def _bits(self, codes: Int[Tensor, "b l"], labels: Labels) -> Float[Tensor, "b l"]:
        logits = self.generator(codes[:, :-1], labels)
        wide = torch.promote_types(logits.dtype, torch.float32)
        likely = logits.to(wide).log_softmax(dim=-1).gather(-1, codes[..., None]).squeeze(-1)
        return likely / -math.log(2)

    @undisturbed()
    def labels_of(
        self,
        labels: Class | Iterable[Class] | None,
        count: int,
    ) -> Labels:
        """Return the labels of ``count`` images: the null class, one class for all, or one for each.

        Raises:
            DataError: There are as many classes as neither one nor ``count``.
            ConfigError: There is no such class.
        """
        if labels is None:
            return torch.full((count,), self.generator.condition.null_class)
        if isinstance(labels, np.ndarray | Tensor) and labels.ndim:
            labels = labels.tolist()
        single = isinstance(labels, str | Mapping) or getattr(labels, "ndim", 1) == 0
        several: list[Any] = list(labels) if isinstance(labels, Iterable) and not single else [labels]
        if len(several) not in (1, count):
            raise DataError(f"got {len(several)} classes for {count} images; give one for all, or one for each")
        return self.labels(several if len(several) == count else several * count)
