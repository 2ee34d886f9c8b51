"""From class names to images: tokenizer, generator and class names in one object."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from aimamba.checkpoints.checkpoint import Checkpoint
from aimamba.config import from_mapping
from aimamba.devices import resolve_dtype
from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig
from aimamba.pipeline.core import PipelineCore
from aimamba.pipeline.loading import SaveGenerator, load_parts, save_parts

Progress = Callable[[int, int], None]
"""Called after every step with the numbers of tokens generated so far and in total."""


class Pipeline(PipelineCore):
    """A generator and the tokenizer that it was trained with.

    Attributes:
        tokenizer: Decodes codes to images.
        generator: Generates codes from class labels.
        class_names: Name of every label; empty if they are not known.
    """

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | Checkpoint,
        *,
        tokenizer: str | Path | Checkpoint | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        engine: str = "auto",
        foreign_tokenizer: bool = False,
        verify: bool | None = None,
    ) -> "Pipeline":
        """Load generator, tokenizer and class names.

        Args:
            source: Name of a packaged model (``avatars-64``), folder of a saved pipeline or a training run, an
                official AiM checkpoint, a hub id, or a checkpoint that is open already.
            tokenizer: Where the tokenizer is, if ``source`` holds none.
            device: Device of the weights, or ``auto`` for the fastest; on ``meta`` they have shapes but no values.
            dtype: Dtype of the weights, or its name such as ``bfloat16``.
            engine: Computes the generator's steps, see ``aimamba.generation.engines``.
            foreign_tokenizer: Accept another tokenizer than the one whose codes the generator was trained on.
            verify: Whether to compare the weights with their SHA-256 sums; by default they are, up to 1 GB.

        Raises:
            CheckpointError: A part is missing or damaged.
            ConfigError: There is no such device or dtype, or the tokenizer is a foreign one.
        """
        dtype = resolve_dtype(dtype) if isinstance(dtype, str) else dtype
        parts = load_parts(source, tokenizer=tokenizer, device=device, dtype=dtype, verify=verify)
        return cls(*parts, engine=engine, foreign_tokenizer=foreign_tokenizer)

    def save_pretrained(self, folder: str | Path, *, save_generator: SaveGenerator | None = None) -> None:
        """Write ``tokenizer/``, ``generator/`` and ``pipeline.json`` into ``folder``.

        The generator's config names the tokenizer, in the dtype in which it is written. One that was trained with
        another tokenizer keeps the name of that one.

        Args:
            folder: The folder; made if needed.
            save_generator: Writes the generator into the folder it is called with, with the config it is called with;
                by default its weights are written whole.
        """
        save_parts(Path(folder), self.tokenizer, self.generator, self.class_names, save_generator)

    def __call__(
        self,
        labels: Sequence[str | int],
        n: int | SamplingConfig = 1,
        config: SamplingConfig | Mapping[str, Any] = SamplingConfig(),  # noqa: B008 - frozen
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """Generate ``n`` images of each class.

        Args:
            labels: Class names or numbers.
            n: Images of each class. Image j of every class has the seed ``config.seed + j``. Settings of sampling may
                stand in its place; ``n`` is 1 then.
            config: Settings of sampling, or a mapping of them.
            batch_size: Images generated at once. It changes speed and memory, not the images.
            progress: Called after every step.

        Returns:
            Square images, class by class.

        Raises:
            ConfigError: A label or setting is unknown, or a number is out of range.
        """
        if isinstance(n, SamplingConfig):
            config, n = n, 1
        if not isinstance(config, SamplingConfig):
            config = from_mapping(SamplingConfig, config, where="config")
        if n < 1 or batch_size < 1:
            raise ConfigError(f"expected n and batch size to be at least 1, got n {n}, batch size {batch_size}")
        if isinstance(labels, str):
            raise ConfigError(f"expected a list of classes, got the single text {labels!r}; write [{labels!r}]")
        jobs = [(self.label(label), config.seed + j) for label in labels for j in range(n)]
        length = self.generator.config.num_tokens
        batches = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
        generated = 0

        def advance(tokens: int) -> None:
            nonlocal generated
            generated += tokens
            if progress is not None:
                progress(generated, len(jobs) * length)

        images: list[Image.Image] = []
        for finished in self.batches(batches, config, progress=advance):
            images += [Image.fromarray(image) for image in finished.images.numpy()]
        return images
