"""From class names to images: tokenizer, generator and class names in one object."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from aimamba.checkpoints.checkpoint import Checkpoint
from aimamba.data.sheets import to_pil
from aimamba.devices import resolve_dtype
from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig
from aimamba.pipeline.drawing import Progress, Settings
from aimamba.pipeline.editing import Editing
from aimamba.pipeline.loading import SaveGenerator, load_parts, save_parts
from aimamba.pipeline.scoring import Class


class Pipeline(Editing):
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
        labels: Sequence[Class],
        n: int | SamplingConfig = 1,
        config: Settings | Sequence[Settings] = SamplingConfig(),  # noqa: B008 - frozen
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """Generate ``n`` images of each class.

        Args:
            labels: Class names or numbers, or mixtures such as ``{"planets": 0.7, "clay": 0.3}``.
            n: Images of each class. Image j of every class has the seed ``config.seed + j``. Settings of sampling may
                stand in its place; ``n`` is 1 then.
            config: Settings of sampling, or a mapping of them; for all classes, or one for each.
            batch_size: Images generated at once. It changes speed and memory, not the images.
            progress: Called after every step.

        Returns:
            Square images, class by class.

        Raises:
            ConfigError: A label or setting is unknown, or a number is out of range.
        """
        if isinstance(n, SamplingConfig):
            config, n = n, 1
        if n < 1 or batch_size < 1:
            raise ConfigError(f"expected n and batch size to be at least 1, got n {n}, batch size {batch_size}")
        given = self.labels(labels).repeat_interleave(n, dim=0)
        configs, seeds = self.each_image(config, len(labels), n)

        def start(part: slice) -> Iterator[Tensor]:
            return self.generate(given[part], configs[part], seeds=seeds[part])

        return to_pil(self.draw(start, len(given), batch_size, progress))
