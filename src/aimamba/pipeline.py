"""From class names to images: tokenizer, generator and class names in one object."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from aimamba import __version__
from aimamba.checkpoints.checkpoint import Checkpoint, open_checkpoint
from aimamba.checkpoints.locate import CONFIG_FILE, PIPELINE_FILE
from aimamba.checkpoints.sums import SUMS_KEY, sum_of_file, sum_of_values
from aimamba.config import from_mapping
from aimamba.data.class_names import find_class
from aimamba.data.imagenet import IMAGENET_CLASSES, imagenet_class_names
from aimamba.data.sheets import to_uint8
from aimamba.devices import resolve_device, resolve_dtype
from aimamba.errors import CheckpointError, ConfigError
from aimamba.files import write_atomically
from aimamba.generation import Engine, SamplingConfig, generate, make_engine
from aimamba.generation.engines import check_engine, resolve_engine
from aimamba.generation.fast_decoder import FastDecoder
from aimamba.generation.finished import Fetcher, Finished, finished_batches
from aimamba.generation.record import ModelRecord
from aimamba.generation.weight_versions import weight_versions
from aimamba.models import AiM, AiMConfig, VQModel

Progress = Callable[[int, int], None]
"""Called after every step with the numbers of tokens generated so far and in total."""


class Pipeline:
    """A generator and the tokenizer that it was trained with.

    Attributes:
        tokenizer: Decodes codes to images.
        generator: Generates codes from class labels.
        class_names: Name of every label; empty if they are not known.
    """

    def __init__(
        self,
        tokenizer: VQModel,
        generator: AiM,
        class_names: Sequence[str] = (),
        *,
        engine: str = "auto",
        foreign_tokenizer: bool = False,
    ) -> None:
        """Combine the parts.

        Args:
            tokenizer: Decodes codes to images.
            generator: Generates codes from class labels.
            class_names: Name of every label, or none.
            engine: Name of the engine that computes decoding steps, see ``aimamba.generation.engines``.
            foreign_tokenizer: Accept another tokenizer than the one whose codes the generator was trained on.

        Raises:
            ConfigError: The generator was trained on the codes of another tokenizer; the numbers of codes of generator
                and tokenizer differ; the grid of codes is not square; the number of names is not that of classes; or
                there is no such engine.
        """
        codes, vocabulary = tokenizer.config.codebook_size, generator.config.vocab_size
        if codes != vocabulary:
            raise ConfigError(
                f"generator and tokenizer do not belong together: {vocabulary} codes against {codes} in the codebook; "
                "give the tokenizer that the generator was trained with"
            )
        if not foreign_tokenizer:
            _check_tokenizer(generator.config, tokenizer)
        self.grid = math.isqrt(generator.config.num_tokens)
        if self.grid**2 != generator.config.num_tokens:
            raise ConfigError(
                f"expected a square grid of codes, got {generator.config.num_tokens} codes for each image"
            )
        if len(class_names) not in (0, generator.config.num_classes):
            raise ConfigError(
                f"expected {generator.config.num_classes} class names, one for each class, got {len(class_names)}"
            )
        self.tokenizer = tokenizer
        self.generator = generator
        check_engine(engine)
        self.class_names = tuple(class_names)
        self.engine = engine
        self._prepared: tuple[tuple[str, list[tuple[int, int]]], Engine] | None = None  # what it was made from, engine
        self._decoder: FastDecoder | None = None

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
        device, dtype = _device(device), resolve_dtype(dtype) if isinstance(dtype, str) else dtype
        checkpoint = open_checkpoint(source)
        generator = AiM.from_pretrained(checkpoint, device=device, dtype=dtype, verify=verify)
        names = saved_class_names(checkpoint, generator.config.num_classes)
        try:
            place = _with_tokenizer(checkpoint) if tokenizer is None else tokenizer
            vq = VQModel.from_pretrained(place, device=device, dtype=dtype, verify=verify)
        except CheckpointError as error:
            if tokenizer is not None:
                raise
            raise CheckpointError(f"{error}; give the tokenizer's place beside the generator's") from error
        return cls(vq, generator, names, engine=engine, foreign_tokenizer=foreign_tokenizer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``tokenizer/``, ``generator/`` and ``pipeline.json`` into ``folder``.

        The generator's config names the tokenizer, in the dtype in which it is written. One that was trained with
        another tokenizer keeps the name of that one.
        """
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder / VQModel.folder_in_pipeline)
        config = self.generator.config
        if config.tokenizer in (None, self.tokenizer.code_fingerprint()):
            config = replace(config, tokenizer=self.tokenizer.code_fingerprint(now=True))
        self.generator.save_pretrained(folder / AiM.folder_in_pipeline, config=config)
        values = {"class_names": list(self.class_names)}
        configs = [f"{part}/{CONFIG_FILE}" for part in (VQModel.folder_in_pipeline, AiM.folder_in_pipeline)]
        sums = {PIPELINE_FILE: sum_of_values(values), **{name: sum_of_file(folder / name) for name in configs}}
        content = json.dumps({**values, SUMS_KEY: sums}, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / PIPELINE_FILE, lambda path: path.write_text(content, encoding="utf-8"))

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.grid * self.tokenizer.config.downsampling

    def label(self, name: str | int) -> int:
        """Return the label of a class given by name or number, see ``aimamba.data.class_names``.

        Raises:
            ConfigError: There is no such class, or it could be several; the message names those that are similar.
        """
        return find_class(name, self.class_names, self.generator.config.num_classes)

    def class_name(self, label: int) -> str:
        """Return the name of a class, or ``class-<number>`` if names are not known."""
        return self.class_names[label] if self.class_names else f"class-{label}"

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

    def batches(
        self,
        batches: Iterable[Sequence[tuple[int, int]]],
        config: SamplingConfig,
        *,
        progress: Callable[[int], object] | None = None,
    ) -> Iterator[Finished]:
        """Generate and decode many batches without a pause of the device between them.

        On CUDA, images move to the host while the next batch is generated, and each batch is handed over between two
        tokens of the next. The images are those of ``generate`` and ``decode``.

        Args:
            batches: For every image of a batch, its label and its seed.
            config: Settings of sampling, whose own seed is not used.
            progress: Called after every step with the number of tokens that it generated.

        Yields:
            For each batch in order, its codes (B, L) and 8-bit images (B, s, s, 3), both on the host.

        Raises:
            CheckpointError: Logits or images of a batch contain NaN or infinity, as with damaged weights.
            ConfigError: The engine is unknown or cannot decode this generator on this machine.
        """

        def run(batch: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
            labels, seeds = zip(*batch, strict=True)
            return self.generate(torch.tensor(labels), config, seeds=seeds)

        def decode(codes: Tensor) -> tuple[Tensor, Tensor]:
            decoded = self._prepared_decoder().queue(codes.unflatten(1, (self.grid, self.grid)))
            return to_uint8(decoded.images).permute(0, 2, 3, 1).contiguous(), decoded.finite

        length = self.generator.config.num_tokens
        fetcher = Fetcher(self.generator.word_embedding.weight.device)
        yield from finished_batches(map(run, batches), length, decode, fetcher, progress)

    def generate(
        self, labels: Int[Tensor, " b"], config: SamplingConfig, *, seeds: Sequence[int] | None = None
    ) -> Iterator[Int[Tensor, "b t"]]:
        """Generate the codes of images, see ``aimamba.generation.generate``. The engine is kept for the next call.

        Yields:
            The codes so far, (B, t) for t = 1 ... L.

        Raises:
            ConfigError: The engine is unknown or cannot decode this generator on this machine.
        """
        return generate(self.generator, labels, config, seeds=seeds, engine=self.prepare())

    def prepare(self) -> Engine:
        """Return the engine; make it on the first call, and again when the generator's weights have changed.

        Raises:
            ConfigError: The engine is unknown or cannot decode this generator on this machine.
        """
        now = self.engine, weight_versions(self.generator)
        if self._prepared is None or self._prepared[0] != now:
            self._prepared = now, make_engine(self.generator, self.engine)
        return self._prepared[1]

    def fingerprint(self) -> str:
        """Return the SHA-256 of both parts, as 64 hex digits: of their configs and their weights as they are now."""
        parts = self.generator.fingerprint(), self.tokenizer.fingerprint()
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def record(self, model: str, tokenizer: str | None = None) -> ModelRecord:
        """Return what is kept of this model with its samples.

        Args:
            model: Its name.
            tokenizer: Name of the tokenizer, if it was given separately.
        """
        weights = self.generator.word_embedding.weight
        return ModelRecord(
            model=model,
            tokenizer=tokenizer,
            fingerprint=self.fingerprint(),
            dtype=str(weights.dtype).removeprefix("torch."),
            engine=resolve_engine(self.generator, self.engine),
            device=weights.device.type,
            aimamba=__version__,
        )

    def decode(self, codes: Int[Tensor, "b l"]) -> UInt8[Tensor, "b 3 s s"]:
        """Decode codes, in raster order, to 8-bit images on the tokenizer's device.

        On CPUs, an image does not depend on the rest of its batch. The decoder is prepared on the first call, and
        again when the tokenizer's weights have changed. ``aimamba.data.to_pil`` converts the result to PIL images.
        """
        return to_uint8(self._prepared_decoder()(codes.unflatten(1, (self.grid, self.grid))))

    def _prepared_decoder(self) -> FastDecoder:
        if self._decoder is None or not self._decoder.matches(self.tokenizer):
            self._decoder = FastDecoder(self.tokenizer)
        return self._decoder


def open_tokenizer(
    source: str | Path | Checkpoint,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    foreign: bool = False,
) -> VQModel:
    """Load the tokenizer of a model; beside a generator, it must be the one that the generator was trained with.

    Args:
        source: A tokenizer, or what ``Pipeline.from_pretrained`` takes.
        device: Device of the weights.
        dtype: Dtype of the weights.
        foreign: Accept a tokenizer that stands beside a generator of another one.

    Raises:
        CheckpointError: It is missing or damaged.
        ConfigError: It stands beside a generator that was trained on the codes of another tokenizer.
    """
    checkpoint = open_checkpoint(source)
    tokenizer = VQModel.from_pretrained(checkpoint, device=device, dtype=dtype)
    if not foreign and "generator" in checkpoint.parts:
        _check_tokenizer(AiM.from_pretrained(checkpoint, device="meta").config, tokenizer)
    return tokenizer


def _check_tokenizer(config: AiMConfig, tokenizer: VQModel) -> None:
    """Check that a tokenizer is the one that the generator's config names; one on the meta device has no weights."""
    if config.tokenizer is None or tokenizer.codebook.is_meta:
        return
    if (given := tokenizer.code_fingerprint()) != config.tokenizer:
        raise ConfigError(
            f"the generator was trained with the tokenizer {config.tokenizer[:12]}, and the one given is {given[:12]}: "
            "it would decode noise; give the right one, or accept it with --foreign-tokenizer (foreign_tokenizer=True)"
        )


def _device(name: str | torch.device) -> torch.device:
    """Return a device; a name that is not known to torch is an error that lists those of this machine."""
    try:
        return resolve_device(name) if name == "auto" else torch.device(name)
    except RuntimeError:
        return resolve_device(str(name))


def saved_class_names(checkpoint: Checkpoint, num_classes: int) -> tuple[str, ...]:
    """Return the class names of a checkpoint; ImageNet's for one of 1,000 classes without names."""
    names = checkpoint.class_names()
    if names is None:
        return imagenet_class_names() if num_classes == IMAGENET_CLASSES else ()
    return names


def _with_tokenizer(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint itself, or the saved pipeline around it if it is the generator's folder in one."""
    folder = checkpoint.place(AiM.folder_in_pipeline)
    is_inside = folder == checkpoint.path and folder.name == AiM.folder_in_pipeline
    if is_inside and (folder.parent / VQModel.folder_in_pipeline).is_dir():
        return open_checkpoint(folder.parent)
    return checkpoint
