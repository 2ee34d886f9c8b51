"""How the tokens of some images are sampled: everything that the steps need, on the device before the first one.

Shape letters: B images, C classes, D width, L tokens of an image, R rows of the state (one for each image, then the
unconditional rows of guided images), V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.devices import send
from aimamba.errors import ConfigError, DataError
from aimamba.generation.engines import Engine, SamplingEngine
from aimamba.generation.sampling import SamplingConfig
from aimamba.models import AiM, DecodingState
from aimamba.models.aim import BEGUN
from aimamba.models.condition import Given
from aimamba.ops.sampling.logits import Setting, guide, guided_sample, settings_dtype, uniform_dtype
from aimamba.seeds import seeded

Labels = Given
"""A class for each image, weights of the classes for each, or openings; see ``ClassCondition``."""

_FILTERS = ("top_k", "top_p", "min_p")


class SamplingPlan:
    """Settings of every image and token.

    Attributes:
        configs: The settings of each image.
        count: Number of images (B).
        guided: Images that have an unconditional row, in the order of these rows.
        last_guided: Number of tokens after which no image is guided any more.
    """

    def __init__(
        self,
        model: AiM,
        labels: Labels,
        configs: Sequence[SamplingConfig],
        negatives: Float[Tensor, "b p1 d"] | None = None,
    ) -> None:
        """Check the settings and send them to the device. Does not wait for it, if labels are on the host.

        Args:
            model: The generator.
            labels: Checked by ``check_labels``.
            configs: Settings of each image.
            negatives: Openings of the unconditional rows, in place of those of the negative classes.

        Raises:
            ConfigError: A negative class does not fit.
        """
        self._model = model
        self.configs = configs
        self.count, self._length = len(labels), model.config.num_tokens
        self.device = model.word_embedding.weight.device
        tokens = range(self._length)
        courses = {config: [config.guidance_at(t, self._length) for t in tokens] for config in set(configs)}
        courses_of = [courses[config] for config in configs]
        scales = torch.tensor(courses_of, dtype=torch.float32).mT.contiguous()  # (L, B)
        guided = (scales != 1).any(dim=0).nonzero().flatten()  # images that need an unconditional row
        self.last_guided = int((scales != 1).any(dim=1).nonzero().max()) + 1 if len(guided) else 0
        rows = torch.arange(self.count).index_copy(0, guided, self.count + torch.arange(len(guided)))
        self._unconditional_rows = send(rows, self.device) if len(guided) else None
        self.guided, self._scales = send(guided, self.device), send(scales, self.device)
        given = torch.tensor([negative_label(model, configs[i]) for i in guided.tolist()], dtype=torch.long)
        others = send(given, self.device) if negatives is None else send(negatives, self.device)[self.guided]
        self._given = send(labels, self.device), others
        filters = {name: self._setting([getattr(each, name) for each in configs]) for name in _FILTERS}
        changes = any(config.temperature_end is not None for config in courses)
        course = [self._temperature_at(t) for t in (tokens if changes else tokens[:1])]
        self._settings: list[dict[str, Any]] = [{"temperature": course[t if changes else 0], **filters} for t in tokens]

    def _temperature_at(self, index: int) -> Setting:
        return self._setting([config.temperature_at(index, self._length) for config in self.configs])

    def _setting(self, values: Sequence[int | float]) -> Setting:
        """Return a number if all images agree, so that kernels need no table of them."""
        if len(set(values)) == 1:
            return values[0]
        return send(torch.tensor(values, dtype=settings_dtype(values)), self.device)

    @property
    def rows(self) -> int:
        """Number of rows at the first step (R)."""
        return self.count + len(self.guided)

    def first_inputs(self) -> Tensor:
        """Return what the first step is given: a class label for each row (R,), or openings (R, P + 1, D)."""
        given, others = self._given
        if not given.is_floating_point() and not others.is_floating_point():
            return torch.cat([given, others])
        return torch.cat([self._model.openings(part) for part in (given, others)])

    def open(self, engine: Engine, state: DecodingState) -> Float[Tensor, "r v"]:
        """Feed the opening of each row, and return the logits of its first code."""
        logits = engine.step(self.first_inputs(), state)
        for _ in range(self._model.config.prefix_tokens):
            logits = engine.step(torch.full((state.rows,), BEGUN, device=self.device), state)
        return logits

    def inputs(self, codes: Int[Tensor, " b"], rows: int) -> Int[Tensor, " r"]:
        """Return what a later step is given: the latest code of each image, for as many rows as there are."""
        return codes if rows == self.count else torch.cat([codes, codes[self.guided]])

    def sample(
        self, engine: Engine, index: int, logits: Float[Tensor, "r v"], uniform: Float[Tensor, " b"]
    ) -> Int[Tensor, " b"]:
        """Choose token ``index`` of each image."""
        choose = engine.guided_sample if isinstance(engine, SamplingEngine) else guided_sample
        guidance = {} if len(logits) == self.count else self._guidance(index)
        return choose(logits, uniform, **guidance, **self._settings[index])

    def log_probabilities(self, index: int, logits: Float[Tensor, "r v"]) -> Float[Tensor, "b v"]:
        """Return the distributions of token ``index`` of each image, as guidance and temperature make them.

        Nothing is left out: top-k, top-p and min-p do not count, nor does a temperature of 0.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        given = logits[: self.count]
        if len(logits) > self.count and self._unconditional_rows is not None:
            given = guide(given, logits[self._unconditional_rows], self._scales[index])
        temperature = torch.as_tensor(self._settings[index]["temperature"], dtype=given.dtype, device=given.device)
        return (given / temperature.masked_fill(temperature == 0, 1).reshape(-1, 1)).log_softmax(dim=-1)

    def leave(self, state: DecodingState, done: int) -> DecodingState:
        """Return the state without the unconditional rows, if no image is guided after its first ``done`` tokens."""
        if state.rows == self.count or done != self.last_guided or done == self._length:
            return state
        return state.select(torch.arange(self.count, device=self.device))

    def rows_of(self, images: Int[Tensor, " b"], rows: int) -> Int[Tensor, " r"]:
        """Return the rows of a state of ``rows`` rows in which image i goes on where ``images[i]`` has been."""
        if rows == self.count or self._unconditional_rows is None:
            return images
        return torch.cat([images, self._unconditional_rows[images][self.guided]])

    def _guidance(self, index: int) -> dict[str, Any]:
        return {"unconditional_rows": self._unconditional_rows, "scale": self._scales[index]}


def uniform_numbers(model: AiM, seeds: Sequence[int], rows: int = 1) -> Float[Tensor, "n l b"]:
    """Return the random numbers of each image, uniform in [0, 1): the same on every device and in every batch.

    They are made on the host and sent to the device, which does not wait for them unless it has nothing else to do.

    Args:
        model: The generator.
        seeds: A seed for each image (B).
        rows: How many rows of L numbers each image needs (n); the first ones are the same for every n.
    """
    shape, device = (rows, model.config.num_tokens), model.word_embedding.weight.device
    numbers = [torch.rand(shape, dtype=torch.float64, generator=seeded(seed)) for seed in seeds]
    return send(torch.stack(numbers, dim=-1).to(uniform_dtype(device)), device)


def check_labels(model: AiM, labels: Labels) -> None:
    """Check labels, or weights of classes.

    Raises:
        DataError: There is none, or a label is out of range.
        ConfigError: Weights do not fit, see ``ClassCondition``.
    """
    if len(labels) == 0:
        raise DataError("no labels given; expected at least one")
    if labels.ndim == 3:
        return model.condition.check_opening(labels)
    if labels.is_floating_point():
        return model.condition.check_mixtures(labels)
    null_class = model.condition.null_class
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > null_class:
        wrong = lowest if lowest < 0 else highest
        raise DataError(
            f"label {wrong} is out of range: expected 0 to {null_class - 1}, or {null_class} for the null class"
        )


def check_codes(model: AiM, codes: Tensor, count: int, name: str) -> Int[Tensor, "_ k"]:
    """Return codes given for some images as (B, k), from (B, k) or rows of the grid (B, r, w).

    Raises:
        DataError: Their shape, dtype or values do not fit ``count`` images.
    """
    length = model.config.num_tokens
    flat = codes.flatten(1) if codes.ndim == 3 else codes
    if flat.ndim != 2 or flat.shape[0] not in (count, 1) or flat.shape[1] > length:
        raise DataError(
            f"{name} of shape {tuple(codes.shape)} does not fit {count} images of {length} codes; expected "
            f"({count}, k) or ({count}, rows, columns)"
        )
    if flat.is_floating_point() or flat.dtype == torch.bool:
        raise DataError(f"{name} must hold codes, which are whole numbers, got {flat.dtype}")
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < model.config.vocab_size:
        raise DataError(f"{name} holds codes outside 0 to {model.config.vocab_size - 1}")
    return flat.expand(count, -1)


def negative_label(model: AiM, config: SamplingConfig) -> int:
    """Return the label of an image's unconditional row.

    Raises:
        ConfigError: The negative class is a name, or out of range.
    """
    null_class = model.condition.null_class
    negative = null_class if config.negative is None else config.negative
    if isinstance(negative, str):
        raise ConfigError(f"negative class {negative!r}: a generator has no class names; give the number")
    if not 0 <= negative <= null_class:
        raise ConfigError(f"negative class {negative} is out of range: expected 0 to {null_class - 1}")
    return negative
