"""New images from given ones: completions, variations, inpainting, interpolation, and previews while they are made.

Shape letters: B images, C classes, L tokens of an image, h w grid of codes.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig
from aimamba.generation.inpainting import inpaint
from aimamba.generation.plan import Labels
from aimamba.pipeline.drawing import MOST_IMAGES, Drawing, Preview, Progress, Settings, whole
from aimamba.pipeline.images import (
    Fit,
    Images,
    OutputType,
    check_choice,
    put_back,
    read_images,
    read_masks,
    write_images,
)
from aimamba.pipeline.prompts import Class, Prompt

_PATHS = ("linear", "sphere")

_DEFAULT = SamplingConfig()


def _way(ends: Float[Tensor, "2 d"], steps: int, path: str) -> Float[Tensor, "n 2"]:
    """Return how much of both ends there is in each of ``n`` steps from one to the other."""
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    parts = torch.stack([1 - share, share], dim=1)
    if path == "sphere":
        first, last = torch.nn.functional.normalize(ends, dim=1)
        angle = float(torch.arccos((first @ last).clamp(-1, 1)))
        if math.sin(angle) > 1e-6:  # otherwise the vectors are parallel, and there is nothing to turn
            return torch.sin(parts * angle) / math.sin(angle)
    return parts


class Editing(Drawing):
    """Everything that begins with an image, or shows one before it is finished.

    Images come and go as ``aimamba.pipeline.images`` describes. Where a method makes ``n`` images of one, the j-th has
    the seed ``config.seed + j``, and no image depends on the others or on ``batch_size``.
    """

    def stream(
        self,
        labels: Iterable[Class],
        n: int = 1,
        config: Settings | Sequence[Settings] = _DEFAULT,
        *,
        every: int | None = None,
        prefix: Tensor | None = None,
        output_type: OutputType = "pil",
    ) -> Iterator[Preview]:
        """Generate ``n`` images of each class at once, and yield previews of all of them while they are made.

        Args:
            labels: Classes or mixtures.
            n: Images of each class; see ``__call__``.
            config: Settings of sampling, for all or for each class.
            every: Tokens between two previews; by default one row of the grid.
            prefix: The first tokens of each image, as ``encode`` returns them: one row for all or one for each image.
                The first preview comes after them.
            output_type: ``pil``, ``numpy`` or ``tensor``.

        Yields:
            Previews; the last one holds the finished images.

        Raises:
            ConfigError: A class or setting is unknown, or a number is out of range.
            DataError: The prefix does not fit.
        """
        every = self.grid if every is None else whole("every", every)
        if every < 1:
            raise ConfigError(f"every must be at least 1 token, got {every}")
        given = self.labels(labels)
        configs, seeds = self.each_image(config, len(given), n)
        run = self.generate(given.repeat_interleave(n, dim=0), configs, seeds=seeds, prefix=prefix)
        first = 0 if prefix is None else prefix[0].numel()
        return self.previews(run, every, first, output_type)

    def complete(
        self,
        images: Images,
        keep_rows: int,
        labels: Class | Iterable[Class] | None = None,
        n: int = 1,
        config: Settings | Sequence[Settings] = _DEFAULT,
        *,
        fit: Fit = "exact",
        batch_size: int = 16,
        progress: Progress | None = None,
        output_type: OutputType = "pil",
    ) -> Any:
        """Keep the top of images and generate the rest.

        Args:
            images: One or several, see ``encode``.
            keep_rows: Rows of tokens to keep, of ``grid``; a row has as many pixels as the tokenizer scales down.
            labels: A class or a mixture, for all images or one for each. By default the one under which the kept
                tokens of an image are likeliest.
            n: Completions of each image.
            config: Settings of sampling, for all or for each image.
            fit: See ``encode``.
            batch_size: Images generated at once.
            progress: Called after every step.
            output_type: ``pil``, ``numpy`` or ``tensor``.

        Returns:
            Images, ``n`` for each.

        Raises:
            DataError: An image does not fit.
            ConfigError: A class or setting is unknown, or a number is out of range.
        """
        kept = self.tokens_of_rows(keep_rows)
        codes = self.encode(images, fit=fit)
        kept = kept.expand(len(codes), -1)
        return self._continued(
            codes, keep_rows * self.grid, self.guess(codes, labels, kept), n, config, batch_size, progress, output_type
        )

    def vary(
        self,
        images: Images,
        from_token: int,
        n: int = 4,
        labels: Class | Iterable[Class] | None = None,
        config: Settings | Sequence[Settings] = _DEFAULT,
        *,
        fit: Fit = "exact",
        batch_size: int = 16,
        progress: Progress | None = None,
        output_type: OutputType = "pil",
    ) -> Any:
        """Generate variations of images, which share the tokens before ``from_token``.

        Args:
            images: One or several, see ``encode``.
            from_token: The first token, in raster order, that is generated again; 0 generates all.
            n: Variations of each image.
            labels: See ``complete``; by default the class under which the whole image is likeliest.
            config: Settings of sampling, for all or for each image.
            fit: See ``encode``.
            batch_size: Images generated at once.
            progress: Called after every step.
            output_type: ``pil``, ``numpy`` or ``tensor``.

        Returns:
            Images, ``n`` for each.

        Raises:
            DataError: An image does not fit.
            ConfigError: A class or setting is unknown, or a number is out of range.
        """
        length = self.generator.config.num_tokens
        from_token = whole("from_token", from_token)
        if not 0 <= from_token < length:
            raise ConfigError(f"from_token must be from 0 to {length - 1}, got {from_token}")
        codes = self.encode(images, fit=fit)
        given = self.guess(codes, labels)
        return self._continued(codes, from_token, given, n, config, batch_size, progress, output_type)

    def inpaint(
        self,
        images: Images,
        masks: Any,
        labels: Class | Iterable[Class] | None = None,
        n: int = 1,
        config: Settings | Sequence[Settings] = _DEFAULT,
        *,
        method: str = "resample",
        candidates: int = 16,
        keep_pixels: bool = False,
        fit: Fit = "exact",
        batch_size: int = 4,
        progress: Progress | None = None,
        output_type: OutputType = "pil",
    ) -> Any:
        """Draw masked parts of images again, so that they fit what is around them.

        A token is drawn again if any of its pixels is masked; the other tokens stay, in raster order before and after
        it. What comes after a masked token is accounted for as ``aimamba.generation.inpainting`` describes.

        Args:
            images: One or several, see ``encode``.
            masks: White, true or 1 where to draw again; for all images or one for each. PIL images, arrays or tensors,
                of pixels (s, s) or of tokens (h, w) or (L,); see ``read_masks`` in ``aimamba.pipeline.images``.
            labels: See ``complete``; by default the class under which the tokens outside of the mask are likeliest.
            n: Drawings of each image.
            config: Settings of sampling, for all or for each image.
            method: ``resample``, ``best`` or ``plain``.
            candidates: Candidates for each drawing that are decoded side by side.
            keep_pixels: Put the pixels of the given image back outside of the masked tokens. Otherwise the whole image
                is decoded from tokens, so all of it has the tokenizer's look, without a seam.
            fit: See ``encode``.
            batch_size: Images drawn at once, each with all its candidates.
            progress: Called after every step.
            output_type: ``pil``, ``numpy`` or ``tensor``.

        Returns:
            Images, ``n`` for each.

        Raises:
            DataError: An image or a mask does not fit, or a mask is empty.
            ConfigError: A class or setting is unknown, or a number is out of range.
        """
        pixels = read_images(images, self.image_size, fit)
        codes = self.encode(pixels)
        mask = read_masks(masks, len(codes), self.image_size, self.grid)
        configs, seeds = self.each_image(config, len(codes), n)
        candidates = whole("candidates", candidates)
        given = self.guess(codes, labels, ~mask).repeat_interleave(n, dim=0)
        many, hidden = codes.repeat_interleave(n, dim=0), mask.repeat_interleave(n, dim=0)

        def start(part: slice) -> Iterator[Tensor]:
            settings, negatives = self.negatives(configs[part], len(given[part]))
            return inpaint(
                self.generator,
                given[part],
                settings,
                codes=many[part],
                mask=hidden[part],
                seeds=seeds[part],
                negatives=negatives,
                method=method,
                candidates=candidates,
                engine=self.prepare(),
            )

        drawn = self.draw(start, len(many), batch_size, progress)
        if keep_pixels:
            drawn = put_back(pixels.repeat_interleave(n, dim=0), drawn, hidden)
        return write_images(drawn, output_type)

    def interpolate(
        self,
        a: Class,
        b: Class,
        steps: int = 8,
        config: Settings = _DEFAULT,
        *,
        path: str = "sphere",
        batch_size: int = 16,
        progress: Progress | None = None,
        output_type: OutputType = "pil",
    ) -> Any:
        """Generate images on the way from one class to another, all with the same seed.

        Args:
            a: The first class, mixture or prompt.
            b: The last one.
            steps: Number of images, with both ends.
            config: Settings of sampling.
            path: How class vectors are mixed: ``linear``, or on the ``sphere``, on which they keep their length.
            batch_size: Images generated at once.
            progress: Called after every step.
            output_type: ``pil``, ``numpy`` or ``tensor``.

        Returns:
            Images, from ``a`` to ``b``.

        Raises:
            ConfigError: A class or setting is unknown, or a number is out of range.
        """
        weights = self.between(a, b, steps, path)
        chosen = self.settings(config)

        def start(part: slice) -> Iterator[Tensor]:
            return self.generate(weights[part], chosen, seeds=[chosen.seed] * len(weights[part]))

        return write_images(self.draw(start, steps, batch_size, progress), output_type)

    def between(self, a: Class, b: Class, steps: int, path: str = "sphere") -> Tensor:
        """Return what ``generate`` takes for the way from one class to another, see ``interpolate``.

        These are weights of all classes (steps, C), or with a prompt openings (steps, P + 1, D). On the sphere, the
        weights of a step add up to more than 1: a mean of two vectors is shorter than they are.
        """
        check_choice("path", path, _PATHS)
        steps = whole("steps", steps)
        if not 2 <= steps <= MOST_IMAGES:
            raise ConfigError(f"steps must be from 2, for both ends, to {MOST_IMAGES:,}, got {steps}")
        if isinstance(a, Prompt) or isinstance(b, Prompt):
            openings = self.labels([a, b]).cpu().double()  # every vector goes its own way
            ways = [_way(openings[:, token], steps, path) @ openings[:, token] for token in range(openings.shape[1])]
            return torch.stack(ways, dim=1).to(self.generator.dtype)
        ends = torch.stack([self.weights(a), self.weights(b)]).double()
        vectors = ends @ self.generator.condition.table.weight.detach()[: ends.shape[1]].cpu().double()
        return (_way(vectors, steps, path) @ ends).float()

    def _continued(
        self,
        codes: Int[Tensor, "b l"],
        kept: int,
        labels: Labels,
        n: int,
        config: Settings | Sequence[Settings],
        batch_size: int,
        progress: Progress | None,
        output_type: OutputType,
    ) -> Any:
        """Generate what follows the first ``kept`` tokens, ``n`` times for each image."""
        configs, seeds = self.each_image(config, len(codes), n)
        many, given = codes.cpu().repeat_interleave(n, dim=0), labels.repeat_interleave(n, dim=0)

        def start(part: slice) -> Iterator[Tensor]:
            return self.generate(given[part], configs[part], seeds=seeds[part], prefix=many[part, :kept])

        return write_images(self.draw(start, len(many), batch_size, progress), output_type)
