"""What users ask for, as the generator takes it: classes, mixtures, prompts, and settings that name them.

Shape letters: B images, C classes, P prefix tokens, D width.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.config import from_mapping
from aimamba.data.class_names import find_class
from aimamba.data.vocabulary import Vocabulary
from aimamba.devices import send
from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig
from aimamba.generation.plan import Labels
from aimamba.inference import undisturbed
from aimamba.models import AiM
from aimamba.models.text import Captions
from aimamba.networks.sentence import SentenceEncoder
from aimamba.pipeline.prompts import Class, ClassName, Mixture, Prompt, listed


class Conditions:
    """Names of classes, and what reads prompts.

    Attributes:
        generator: Takes the conditions.
        class_names: Name of every label; empty if they are not known.
        vocabulary: Of the captions that the generator takes, if it takes any.
        text_encoder: The frozen sentence encoder whose vectors it takes, or where it is.
    """

    generator: AiM
    class_names: tuple[str, ...]
    vocabulary: Vocabulary | None
    text_encoder: str | Path | SentenceEncoder

    def label(self, name: str | int) -> int:
        """Return the label of a class given by name or number, see ``aimamba.data.class_names``.

        Raises:
            ConfigError: There is no such class, or it could be several; the message names those that are similar.
        """
        return find_class(name, self.class_names, self.generator.config.num_classes)

    @undisturbed()
    def labels(self, classes: Iterable[Class]) -> Labels:
        """Return what ``generate`` takes for some classes or prompts.

        These are labels (B,); if one is a mixture, weights (B, C); and if one is a prompt, openings (B, P + 1, D).

        Raises:
            ConfigError: There is no such class, the weights of a mixture are not numbers of 0 or more, some above, or
                the generator takes no prompts.
        """
        classes = listed(classes)
        if any(isinstance(each, Prompt) for each in classes):
            different = {repr(each): each for each in classes}  # often one many times; a mixture has no hash
            openings = {key: self.opening(each) for key, each in different.items()}
            return torch.stack([openings[repr(each)] for each in classes])
        if not any(isinstance(each, Mapping) for each in classes):
            return torch.tensor([self.label(each) for each in classes], dtype=torch.long)  # type: ignore[arg-type]
        return torch.stack([self.weights(each) for each in classes if not isinstance(each, Prompt)])

    @torch.no_grad()
    @undisturbed()
    def opening(self, given: Class | None) -> Float[Tensor, "p1 d"]:
        """Return the opening of a class, mixture or prompt, see ``aimamba.models.condition``; None for the null class.

        Raises:
            ConfigError: See ``labels``.
        """
        text, given = (given.text, given.label) if isinstance(given, Prompt) else (None, given)
        device = self.generator.word_embedding.weight.device
        null = torch.tensor([self.generator.condition.null_class])
        label = send(null if given is None else self.labels([given]), device)
        if text is None:
            return self.generator.openings(label)[0]
        return self.generator.openings(label, send(self.read([text]), device))[0]

    def read(self, prompts: Sequence[str]) -> Captions:
        """Return prompts as the generator takes captions, see ``aimamba.models.text``.

        Raises:
            ConfigError: The generator takes no prompts, or what reads them is missing.
            CheckpointError: The sentence encoder is not the one that the generator was trained with.
        """
        config = self.generator.config.text
        if config is None:
            raise ConfigError(f"this generator takes classes and no prompts, got {prompts[0][:80]!r}; give a class")
        if config.features:
            if not isinstance(self.text_encoder, SentenceEncoder):
                self.text_encoder = SentenceEncoder.load(self.text_encoder, fingerprint=config.encoder)
            return self.text_encoder.encode(prompts, config.tokens)
        if self.vocabulary is None:
            raise ConfigError("the vocabulary of this generator's captions is missing; load the whole pipeline")
        return torch.from_numpy(self.vocabulary.encode(prompts, config.tokens).ids)

    def weights(self, mixture: ClassName | Mixture) -> Tensor:
        """Return a class or a mixture as weights of all classes, (C,), see ``labels``."""
        found = torch.zeros(self.generator.config.num_classes, dtype=torch.float64)
        for name, weight in (mixture if isinstance(mixture, Mapping) else {mixture: 1.0}).items():
            if not isinstance(weight, Real) or not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"the weight of class {name!r} in a mixture must be at least 0, got {weight!r}")
            found[self.label(name)] += float(weight)
        if not bool(found.sum() > 0):
            raise ConfigError("a mixture needs at least one class with a weight above 0")
        return (found / found.sum()).float()

    def settings(self, config: SamplingConfig | Mapping[str, Any]) -> SamplingConfig:
        """Return settings of sampling that ``generate`` takes: built from a mapping, the negative class as a number.

        Raises:
            ConfigError: A setting or class is unknown or out of range.
        """
        if not isinstance(config, SamplingConfig):
            config = from_mapping(SamplingConfig, config, where="config")
        if config.negative is None or self.is_prompt(config.negative):
            return config
        return replace(config, negative=self.label(config.negative))

    def is_prompt(self, negative: str | int) -> bool:
        """Return whether a negative class is a prompt: a text, for a generator that takes them; digits are a class."""
        takes = self.generator.config.text is not None
        return takes and isinstance(negative, str) and not re.fullmatch(r"\s*#?\d+\s*", negative)

    def negatives(
        self, configs: SamplingConfig | Sequence[SamplingConfig], count: int
    ) -> tuple[list[SamplingConfig], Float[Tensor, "b p1 d"] | None]:
        """Return the settings without negative prompts, and the openings of all unconditional rows if there are any."""
        each = [configs] * count if isinstance(configs, SamplingConfig) else list(configs)
        negatives = [config.negative for config in each]
        if not any(isinstance(negative, str) for negative in negatives):
            return each, None
        openings = {one: self.opening(Prompt(one) if isinstance(one, str) else one) for one in set(negatives)}
        return [replace(config, negative=None) for config in each], torch.stack([openings[one] for one in negatives])

    def label_of(self, given: ClassName | Prompt) -> int:
        """Return the label of a class, or of the one beside a prompt; the null class where a prompt stands alone.

        Raises:
            ConfigError: There is no such class, or a mixture stands beside the prompt.
        """
        beside = given.label if isinstance(given, Prompt) else given
        if beside is None:
            return self.generator.condition.null_class
        if isinstance(beside, Mapping):
            raise ConfigError("a mixture of classes has no single label; name one class beside the prompt")
        return self.label(beside)

    def class_name(self, label: int) -> str:
        """Return the name of a class, or ``class-<number>`` if names are not known; the null class has none."""
        if label == self.generator.condition.null_class:
            return ""
        return self.class_names[label] if self.class_names else f"class-{label}"
