"""Images that are generated together, each at its own token and with settings of its own.

Shape letters: B images, L tokens of an image, M places for images, R rows (one for each image, then the unconditional
rows of guided images), V vocabulary.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from aimamba.errors import CheckpointError, DataError
from aimamba.generation.engines import Engine, SamplingEngine
from aimamba.generation.loop import DAMAGED
from aimamba.generation.plan import negative_label, uniform_numbers
from aimamba.generation.record import EditRecord
from aimamba.generation.rows import make_rows
from aimamba.generation.sampling import SamplingConfig
from aimamba.inference import Inference
from aimamba.models import AiM
from aimamba.models.aim import BEGUN
from aimamba.ops.sampling.logits import guided_sample, settings_dtype, uniform_dtype

_SETTINGS = ("top_k", "top_p", "min_p")
_NOWHERE = -1
_FREE = -1  # in place of a code that is to be sampled
_KEPT = 64  # classes whose conditions are kept


@dataclass(frozen=True, kw_only=True)
class Job:
    """An image to be generated.

    Attributes:
        label: Its class; ``num_classes`` is the null class.
        config: Settings of sampling, with the seed of this image.
        prompt: The sentence that it is generated after, of which ``opening`` is made; kept with it.
        opening: In place of the class, as of a caption, (P + 1, D); see ``aimamba.models.condition``.
        negative: Opening of its unconditional row, in place of the negative class.
        known: Codes that are known, (L,); -1 where one is to be sampled. None if all are.
        run: Begins a decoding loop that generates this image alone, beside those that share steps; as ``generate``, it
            yields the tokens so far, (1, t).
        edit: How the image is made, unless of its class alone; kept with it.
        places: How many images it counts for: what ``run`` decodes side by side.
        finish: What becomes of the finished image (s, s, 3), on the host; its previews stay as they are.
    """

    label: int
    config: SamplingConfig
    prompt: str | None = None
    opening: Float[Tensor, "p1 d"] | None = field(default=None, repr=False)
    negative: Float[Tensor, "p1 d"] | None = field(default=None, repr=False)
    known: Int[Tensor, " l"] | None = field(default=None, repr=False)
    run: Callable[[], Iterator[Tensor]] | None = field(default=None, repr=False)
    edit: EditRecord | None = None
    places: int = 1
    finish: Callable[[UInt8[Tensor, "s s 3"]], UInt8[Tensor, "s s 3"]] | None = field(default=None, repr=False)

    def check(self, model: AiM) -> None:
        """Check that the job fits a model.

        Raises:
            DataError: The label or a code is out of range, or the number of codes is not that of an image.
            ConfigError: The negative class does not fit.
        """
        if self.negative is None:
            negative_label(model, self.config)
        length, codes = model.config.num_tokens, model.config.vocab_size
        if not 0 <= self.label <= model.condition.null_class:
            raise DataError(f"label {self.label} is out of range: expected 0 to {model.condition.null_class - 1}")
        for opening in (self.opening, self.negative):
            if opening is not None:
                model.condition.check_opening(opening[None])
        if self.known is None:
            return
        if self.known.shape != (length,):
            raise DataError(f"expected {length} known codes (-1 where one is to be sampled), got {len(self.known)}")
        if not _FREE <= int(self.known.min()) <= int(self.known.max()) < codes:
            raise DataError(f"known codes must be 0 to {codes - 1}, or -1 where one is to be sampled")


@dataclass(eq=False)
class Running:
    """An image in the batch.

    Attributes:
        job: What it is.
        place: Its place in the tables.
        last_guided: Number of tokens after which it is not guided any more.
        codes: Its codes, (L,), of which the first ``tokens`` are chosen; on the device.
        before: Vectors of its opening that its rows have still to take before the first token.
        tokens: Number of tokens that it has.
        error: Why it cannot be finished.
    """

    job: Job
    place: int
    last_guided: int
    codes: Tensor
    before: int = 0
    tokens: int = 0
    error: Exception | None = None


class _Settled(NamedTuple):
    """What changes only when images join or leave.

    Attributes:
        places: Places of the images in the tables, (B,).
        guided: Images that have an unconditional row, in the order of these rows.
        unconditional_rows: That of each image, or its own where it has none; None if no image has one.
        temperature: The temperature of all tokens; None if they differ.
        settings: The other settings: a number where all images agree.
        is_known: Whether any image has known codes.
    """

    places: Tensor
    guided: Tensor
    unconditional_rows: Tensor | None
    temperature: float | None
    settings: dict[str, Any]
    is_known: bool


class Batch:
    """Images that join and leave between two tokens.

    An image depends only on the weights and on its job, not on the images beside it, and is the one that
    ``aimamba.generation.generate`` makes; to the bit where the engine computes a row alike in every batch, as
    ``native`` does.
    """

    def __init__(self, model: AiM, engine: Engine, most: int) -> None:
        """Make room.

        Args:
            model: The generator, in evaluation mode.
            engine: Computes its steps.
            most: Number of images that can be generated together (M).
        """
        self.most = most
        self._model, self._engine = model, engine
        self._sample = engine.guided_sample if isinstance(engine, SamplingEngine) else guided_sample
        self._length, self._device = model.config.num_tokens, model.word_embedding.weight.device
        shape, device = (most, self._length), self._device
        self._uniforms = torch.zeros(shape, dtype=uniform_dtype(device), device=device)
        self._scales, self._temperatures = (torch.ones(shape, dtype=torch.float32, device=device) for _ in range(2))
        self._known = torch.full(shape, _FREE, device=device)
        self._codes = torch.zeros(shape, dtype=torch.long, device=device)
        self._latest = torch.zeros(most, dtype=torch.long, device=device)  # code, or BEGUN
        self.clear()

    def clear(self) -> None:
        """Remove all images, also after a step that failed."""
        self._rows = make_rows(self._engine)
        self._images: list[Running] = []  # in the order of their conditional rows
        self._guided: list[Running] = []  # in the order of their unconditional rows
        self._alone: dict[Running, Iterator[Tensor]] = {}  # images with loops of their own
        self._kept: dict[int, dict[str, Tensor]] = {}  # conditions of classes
        self._free = list(range(self.most))
        self._settled: _Settled | None = None

    def __len__(self) -> int:
        return len(self._images) + len(self._alone)

    @property
    def rows(self) -> int:
        """Number of rows that a step computes."""
        return len(self._rows)

    @Inference()
    def join(self, job: Job) -> Running:
        """Add an image, which begins with the next step.

        Raises:
            IndexError: There is no room.
        """
        if job.run is not None:
            image = Running(job, _NOWHERE, 0, torch.empty(0))
            self._alone[image] = job.run()
            return image
        config, length = job.config, self._length
        scales = [config.guidance_at(t, length) for t in range(length)]
        last_guided = max((t + 1 for t, scale in enumerate(scales) if scale != 1), default=0)
        place = self._free.pop()
        image = Running(job, place, last_guided, self._codes[place], self._model.config.prefix_tokens)
        self._uniforms[place] = uniform_numbers(self._model, [config.seed])[0, :, 0]
        self._scales[place] = torch.tensor(scales, dtype=torch.float32)
        temperatures = [config.temperature_at(t, length) for t in range(length)]
        self._temperatures[place] = torch.tensor(temperatures, dtype=torch.float32)
        self._known[place] = _FREE if job.known is None else job.known
        self._latest[place] = BEGUN
        boundary = len(self._images)
        self._rows.append()
        if self._guided:  # the first unconditional row gives way
            self._rows.move(boundary, len(self._rows) - 1)
            self._guided.append(self._guided.pop(0))
        self._rows.restart(boundary, self._begun(job.label, job.opening))
        self._images.append(image)
        if last_guided:
            self._rows.append()
            null_class = self._model.condition.null_class
            unguided = null_class if job.negative is not None else negative_label(self._model, config)
            self._rows.restart(len(self._rows) - 1, self._begun(unguided, job.negative))
            self._guided.append(image)
        self._settled = None
        return image

    def _begun(self, label: int, opening: Float[Tensor, "p1 d"] | None) -> dict[str, Tensor]:
        """Return the condition of an image. Those of a few classes are kept: the null class comes with every image."""
        if opening is not None:
            return self._model.begun(opening[None].to(self._device))
        if label not in self._kept:
            if len(self._kept) == _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[label] = self._model.begun(torch.tensor([label], device=self._device))
        return self._kept[label]

    @Inference()
    def leave(self, image: Running) -> None:
        """Remove an image, finished or not."""
        if image in self._alone:
            run = self._alone.pop(image)
            if isinstance(run, Generator):
                run.close()
            return
        if image in self._guided:
            self._leave_guidance(image)
        place, last = self._images.index(image), len(self._images) - 1
        self._rows.move(last, place)
        self._images[place] = self._images[last]
        self._images.pop()
        if self._guided:  # the last unconditional row fills the gap before the first
            self._rows.move(len(self._rows) - 1, last)
            self._guided.insert(0, self._guided.pop())
        self._rows.pop()
        self._free.append(image.place)
        self._settled = None

    def _leave_guidance(self, image: Running) -> None:
        """Remove an image's unconditional row."""
        place, last = self._guided.index(image), len(self._guided) - 1
        self._rows.move(len(self._rows) - 1, len(self._images) + place)
        self._guided[place] = self._guided[last]
        self._guided.pop()
        self._rows.pop()
        self._settled = None

    def step(self) -> list[Running]:
        """Choose the next token of every image; return the images that have all of them, which stay until ``leave``."""
        finished = self._step_together() if self._images else []
        for image, run in self._alone.items():
            try:
                codes = next(run, None)
            except Exception as error:
                image.error = error
                continue
            if codes is None:
                finished.append(image)
            else:
                image.codes, image.tokens = codes[0], codes.shape[1]
        return finished

    @Inference()
    def _step_together(self) -> list[Running]:
        settled = self._settled = self._settled or self._settle()
        count, places = len(self._images), settled.places
        tokens = torch.tensor([image.tokens for image in self._images], device=self._device)
        inputs = self._latest[places]
        if self._guided:
            inputs = torch.cat([inputs, inputs[settled.guided]])
        logits = self._rows.step(inputs)
        chosen = self._sample(
            logits,
            self._uniforms[places, tokens],
            unconditional_rows=settled.unconditional_rows,
            scale=None if settled.unconditional_rows is None else self._scales[places, tokens],
            temperature=settled.temperature if settled.temperature is not None else self._temperatures[places, tokens],
            **settled.settings,
        )
        if settled.is_known:
            known = self._known[places, tokens]
            chosen = torch.where(known == _FREE, chosen, known)
        self._codes[places, tokens] = chosen
        if opening := [index for index, image in enumerate(self._images) if image.before]:
            chosen[opening] = BEGUN  # what was chosen for them is written over later
        self._latest[places] = chosen
        finished = []
        for index, image in enumerate(self._images):
            if image.before:
                image.before -= 1
                continue
            image.tokens += 1
            if image.tokens == self._length:
                rows = [index, *(count + place for place, other in enumerate(self._guided) if other is image)]
                image.error = None if bool(logits[rows].isfinite().all()) else CheckpointError(DAMAGED)
                finished.append(image)
        for image in [each for each in self._guided if each.tokens == each.last_guided < self._length]:
            self._leave_guidance(image)
        return finished

    def _settle(self) -> _Settled:
        count, device = len(self._images), self._device
        order = {id(image): index for index, image in enumerate(self._images)}
        guided = [order[id(image)] for image in self._guided]
        unconditional = torch.arange(count)
        unconditional[guided] = count + torch.arange(len(guided))
        configs = [image.job.config for image in self._images]
        temperatures = {each for config in configs for each in (config.temperature, config.temperature_end)} - {None}
        settings: dict[str, Any] = {}
        for name in _SETTINGS:
            values = [getattr(config, name) for config in configs]
            settings[name] = values[0]
            if len(set(values)) > 1:
                settings[name] = torch.tensor(values, dtype=settings_dtype(values), device=device)
        return _Settled(
            torch.tensor([image.place for image in self._images], device=device),
            torch.tensor(guided, dtype=torch.long, device=device),
            unconditional.to(device) if guided else None,
            temperatures.pop() if len(temperatures) == 1 else None,
            settings,
            any(image.job.known is not None for image in self._images),
        )
