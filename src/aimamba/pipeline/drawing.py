"""What all methods that draw share: settings and seeds of each image, batches, progress and previews.

Shape letters: B images, L tokens of an image, s side of an image.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from aimamba.config import pythonic
from aimamba.data.png_text import text_in_png
from aimamba.data.sheets import to_float
from aimamba.errors import AimambaError, ConfigError
from aimamba.generation import SamplingConfig
from aimamba.generation.plan import Labels
from aimamba.generation.record import parse_record
from aimamba.inference import Inference
from aimamba.pipeline.images import OutputType, write_images
from aimamba.pipeline.prompts import Class, Prompt
from aimamba.pipeline.scoring import Scoring

MOST_IMAGES = 1_000_000  # of each class or image, in one call

Progress = Callable[[int, int], None]
"""Called after every step with the numbers of tokens generated so far and in total."""

Settings = SamplingConfig | Mapping[str, Any]
"""Settings of sampling, or a mapping of them."""


def whole(name: str, number: object) -> int:
    """Return a whole number, which may be NumPy's, as Python's.

    Raises:
        ConfigError: It is not whole; the message has ``name``.
    """
    found = pythonic(number)
    if not isinstance(found, int) or isinstance(found, bool):
        raise ConfigError(f"{name} must be a whole number, got {number!r:.80}")
    return found


class Preview(NamedTuple):
    """Images in the making.

    Attributes:
        tokens: How many tokens of each image there are.
        total: How many each will have (L).
        images: As ``output_type`` asks for them; what is not there yet is grey.
    """

    tokens: int
    total: int
    images: Any


class Drawing(Scoring):
    """Draws images in batches."""

    def first_tokens(self, count: int) -> Bool[Tensor, "1 l"]:
        """Return a mask of the first tokens of an image."""
        return torch.arange(self.generator.config.num_tokens)[None] < count

    def tokens_of_rows(self, keep_rows: int) -> Bool[Tensor, "1 l"]:
        """Return a mask of the tokens in the top rows of the grid.

        Raises:
            ConfigError: The rows are not some of the grid's.
        """
        keep_rows = whole("keep_rows", keep_rows)
        if not 0 <= keep_rows < self.grid:
            raise ConfigError(f"keep_rows must be from 0 to {self.grid - 1} of {self.grid} rows, got {keep_rows}")
        return self.first_tokens(keep_rows * self.grid)

    def guess(
        self,
        codes: Int[Tensor, "b l"],
        labels: Class | Iterable[Class] | None,
        known: Bool[Tensor, "b l"] | None = None,
    ) -> Labels:
        """Return the labels of images; without ``labels`` those under which their known tokens are likeliest.

        Raises:
            ConfigError: A class is unknown, or nothing of an image is known that would tell it.
        """
        if labels is not None:
            return self.labels_of(labels, len(codes))
        if known is not None and not bool(known.any(dim=1).all()):
            raise ConfigError("nothing is kept that would tell the class; give it, or keep a part of the image")
        return self.log_likelihoods(codes, known).argmax(dim=-1).cpu()

    def given_in(self, content: bytes) -> int | Prompt | None:
        """Return the class or prompt that the settings in a PNG name; None if they name none that this model takes.

        Args:
            content: The file, or any other.
        """
        try:
            record = parse_record(text_in_png(content) or "", Path("image"))
            is_between = record.edit is not None and 0 < (record.edit.share or 0) < 1
            if is_between:
                return None
            if record.prompt is not None and self.generator.config.text is not None:
                return Prompt(record.prompt, self.label(record.class_name) if record.class_name else None)
            return self.label(record.class_name)
        except AimambaError:
            return None

    def each_image(
        self, config: Settings | Sequence[Settings], count: int, n: int
    ) -> tuple[list[SamplingConfig], list[int]]:
        """Return settings and seed of ``n`` images for each of ``count`` classes or images.

        Raises:
            ConfigError: A setting is unknown or out of range, or there are as many settings as neither one nor count.
        """
        n = whole("n", n)
        if not 1 <= n <= MOST_IMAGES:
            raise ConfigError(f"n must be from 1 to {MOST_IMAGES:,}, got {n}")
        if not isinstance(config, SamplingConfig | Mapping | Sequence):
            raise ConfigError(f"expected settings of sampling, got {type(config).__name__}")
        several = [config] if isinstance(config, SamplingConfig | Mapping) else list(config)
        if isinstance(config, Sequence) and len(several) != count:
            raise ConfigError(f"got {len(several)} configs for {count}; give one for all, or one for each")
        chosen = [self.settings(each) for each in several] * (1 if len(several) == count else count)
        return [each for each in chosen for _ in range(n)], [each.seed + j for each in chosen for j in range(n)]

    def draw(
        self, start: Callable[[slice], Iterator[Tensor]], count: int, batch_size: int, progress: Progress | None
    ) -> Tensor:
        """Generate and decode ``count`` images, (B, 3, s, s) of 8 bits on the host.

        Args:
            start: Begins to generate a part of them.
            count: Number of images.
            batch_size: Images in a part.
            progress: Called after every step.
        """
        batch_size = whole("batch_size", batch_size)
        if batch_size < 1:
            raise ConfigError(f"batch size must be at least 1, got {batch_size}")
        generated, total = 0, count * self.generator.config.num_tokens

        def advance(tokens: int) -> None:
            nonlocal generated
            generated += tokens
            if progress is not None:
                progress(generated, total)

        parts = [slice(first, min(first + batch_size, count)) for first in range(0, count, batch_size)]
        found = [each.images for each in self.finished(map(start, parts), progress=advance)]
        size = self.image_size
        return torch.cat(found).permute(0, 3, 1, 2) if found else torch.empty(0, 3, size, size, dtype=torch.uint8)

    def previews(self, run: Iterator[Tensor], every: int, first: int, output_type: OutputType) -> Iterator[Preview]:
        """Decode what ``generate`` yields, after the first ``first`` tokens and then after every ``every`` tokens."""
        length = self.generator.config.num_tokens
        blank = self.blank_codes()
        for codes in run:
            count = codes.shape[1]
            if count >= first and (count == length or (count - first) % every == 0):
                shown = torch.cat([codes, blank[:, count:].expand(len(codes), -1)], dim=1)
                yield Preview(count, length, write_images(self.decode(shown), output_type))

    @Inference()
    def blank_codes(self) -> Int[Tensor, "1 l"]:
        """Return the codes of a grey image, which stand for tokens that are not there yet."""
        tokenizer = self.tokenizer
        grey = to_float(torch.full((1, 3, self.image_size, self.image_size), 127, dtype=torch.uint8))
        return tokenizer.encode(grey.to(tokenizer.device)).flatten(1)
