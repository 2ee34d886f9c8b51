"""What all work on images begins with: the parts of a pipeline, its engine and decoder, and its classes."""

import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from aimamba import __version__
from aimamba.data.sheets import to_float, to_uint8
from aimamba.data.vocabulary import Vocabulary
from aimamba.errors import ConfigError, DataError
from aimamba.generation import Engine, SamplingConfig, generate, make_engine
from aimamba.generation.engines import check_engine, resolve_engine
from aimamba.generation.fast_decoder import FastDecoder
from aimamba.generation.finished import Fetcher, Finished, finished_batches
from aimamba.generation.plan import Labels, check_codes
from aimamba.generation.record import ModelRecord
from aimamba.generation.weight_versions import weight_versions
from aimamba.inference import Inference
from aimamba.models import AiM, VQModel
from aimamba.networks.sentence import MINILM, SentenceEncoder
from aimamba.pipeline.conditions import Conditions
from aimamba.pipeline.images import Fit, Images, read_images
from aimamba.pipeline.loading import check_tokenizer, check_vocabulary
from aimamba.pipeline.prompts import Prompt

_ENCODED_AT_ONCE = 16


class PipelineCore(Conditions):
    """A generator and the tokenizer that it was trained with.

    Attributes:
        tokenizer: Decodes codes to images.
        generator: Generates codes from class labels.
        class_names: Name of every label; empty if they are not known.
        vocabulary: Of the captions that the generator takes, if it takes any.
    """

    def __init__(
        self,
        tokenizer: VQModel,
        generator: AiM,
        class_names: Sequence[str] = (),
        vocabulary: Vocabulary | None = None,
        *,
        engine: str = "auto",
        foreign_tokenizer: bool = False,
        text_encoder: str | Path | SentenceEncoder = MINILM,
    ) -> None:
        """Combine the parts.

        Args:
            tokenizer: Decodes codes to images.
            generator: Generates codes from class labels.
            class_names: Name of every label, or none.
            vocabulary: Of a generator that takes captions.
            engine: Name of the engine that computes decoding steps, see ``aimamba.generation.engines``.
            foreign_tokenizer: Accept another tokenizer than the one whose codes the generator was trained on.
            text_encoder: Of a generator that takes the vectors of a frozen sentence encoder: its folder, or a name of
                ``SentenceEncoder``. It is loaded with the first prompt.

        Raises:
            ConfigError: The generator was trained on the codes of another tokenizer; the numbers of codes of generator
                and tokenizer differ; the grid of codes is not square; the number of names is not that of classes; the
                vocabulary is not that of the generator; or there is no such engine.
        """
        codes, known = tokenizer.config.codebook_size, generator.config.vocab_size
        if codes != known:
            raise ConfigError(
                f"generator and tokenizer do not belong together: {known} codes against {codes} in the codebook; "
                "give the tokenizer that the generator was trained with"
            )
        if not foreign_tokenizer:
            check_tokenizer(generator.config, tokenizer)
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
        check_vocabulary(generator.config, vocabulary)
        self.class_names = tuple(class_names)
        self.vocabulary = vocabulary
        self.text_encoder = text_encoder
        self.engine = engine
        self._prepared: tuple[tuple[str, list[tuple[int, int]]], Engine] | None = None  # what it was made from, engine
        self._decoder: FastDecoder | None = None
        self._preparing = threading.RLock()  # one thread at a time makes engine and decoder

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle keeps; engine and decoder are made again where they are needed."""
        return {**self.__dict__, "_prepared": None, "_decoder": None, "_preparing": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _preparing=threading.RLock())

    @property
    def device(self) -> torch.device:
        """Device of the generator's weights."""
        return self.generator.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the generator's matrices."""
        return self.generator.dtype

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.grid * self.tokenizer.config.downsampling

    def batches(
        self,
        batches: Iterable[Sequence[tuple[int | Prompt, int]]],
        config: SamplingConfig,
        *,
        progress: Callable[[int], object] | None = None,
    ) -> Iterator[Finished]:
        """Generate and decode many batches without a pause of the device between them.

        On CUDA, images move to the host while the next batch is generated, and each batch is handed over between two
        tokens of the next. The images are those of ``generate`` and ``decode``.

        Args:
            batches: For every image of a batch, its label or prompt, and its seed.
            config: Settings of sampling, whose own seed is not used.
            progress: Called after every step with the number of tokens that it generated.

        Yields:
            For each batch in order, its codes (B, L) and 8-bit images (B, s, s, 3), both on the host.

        Raises:
            CheckpointError: Logits or images of a batch contain NaN or infinity, as with damaged weights.
            ConfigError: The engine is unknown or cannot decode this generator on this machine.
        """

        def run(batch: Sequence[tuple[int | Prompt, int]]) -> Iterator[Tensor]:
            given, seeds = zip(*batch, strict=True)
            prompted = any(isinstance(each, Prompt) for each in given)
            return self.generate(self.labels(given) if prompted else torch.tensor(given), config, seeds=seeds)

        yield from self.finished(map(run, batches), progress=progress)

    def finished(
        self, runs: Iterable[Iterator[Int[Tensor, "b t"]]], *, progress: Callable[[int], object] | None = None
    ) -> Iterator[Finished]:
        """Decode what ``generate`` and its kin yield for many batches, as ``batches`` does, and see there.

        Args:
            runs: The tokens of each batch; the next run is taken when the tokens of one are queued.
            progress: Called after every step with the number of tokens that it generated.
        """

        def decode(codes: Tensor) -> tuple[Tensor, Tensor]:
            decoded = self._prepared_decoder().queue(codes.unflatten(1, (self.grid, self.grid)))
            return to_uint8(decoded.images).permute(0, 2, 3, 1).contiguous(), decoded.finite

        length = self.generator.config.num_tokens
        fetcher = Fetcher(self.generator.word_embedding.weight.device)
        yield from finished_batches(runs, length, decode, fetcher, progress)

    def generate(
        self,
        labels: Labels,
        config: SamplingConfig | Sequence[SamplingConfig],
        *,
        seeds: Sequence[int] | None = None,
        prefix: Tensor | None = None,
    ) -> Iterator[Int[Tensor, "b t"]]:
        """Generate the codes of images, see ``aimamba.generation.generate``. The engine is kept for the next call.

        Args:
            labels: Classes, mixtures of them or prompts, as ``labels`` returns them.
            config: Settings for all images, or one for each.
            seeds: A seed for each image.
            prefix: The first tokens of each image, if they are known, as ``encode`` returns them: (B, k), or rows of
                the grid (B, r, w).

        Yields:
            The codes so far, (B, t) for t = 1 ... L.

        Raises:
            ConfigError: The engine is unknown or cannot decode this generator on this machine.
        """
        configs, negatives = self.negatives(config, len(labels))
        if seeds is None and isinstance(config, SamplingConfig):
            seeds = range(config.seed, config.seed + len(labels))
        return generate(
            self.generator, labels, configs, seeds=seeds, prefix=prefix, negatives=negatives, engine=self.prepare()
        )

    def prepare(self) -> Engine:
        """Return the engine; make it on the first call, and again when the generator's weights have changed.

        Raises:
            ConfigError: The engine is unknown or cannot decode this generator on this machine.
        """
        now = self.engine, weight_versions(self.generator)
        with self._preparing:
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
            model=_escaped(model),
            tokenizer=None if tokenizer is None else _escaped(tokenizer),
            fingerprint=self.fingerprint(),
            dtype=str(weights.dtype).removeprefix("torch."),
            engine=resolve_engine(self.generator, self.engine),
            device=weights.device.type,
            aimamba=__version__,
        )

    @Inference()
    def encode(self, images: Images, *, fit: Fit = "exact") -> Int[Tensor, "b l"]:
        """Encode images as the codes that ``decode`` and ``generate`` take, in raster order, on the tokenizer's device.

        On CPUs, the codes of an image do not depend on the rest of its batch.

        Args:
            images: One or several: PIL images, 8-bit arrays or tensors, or floats in [-1, 1]; see ``read_images`` in
                ``aimamba.pipeline.images``.
            fit: What becomes of an image of another size: ``exact`` refuses it, ``crop`` takes its centre square,
                ``stretch`` all of it.

        Raises:
            DataError: An image has another type, shape, range or size.
            CheckpointError: The tokenizer's weights are damaged.
        """
        tokenizer = self.tokenizer
        pixels = to_float(read_images(images, self.image_size, fit)).to(tokenizer.device)
        parts = pixels.split(1 if tokenizer.device.type == "cpu" else _ENCODED_AT_ONCE)
        codes = torch.cat([tokenizer.encode(part) for part in parts]).flatten(1)
        with torch.inference_mode(mode=False):  # so that the caller may train on them
            return codes.clone()

    def decode(self, codes: Tensor) -> UInt8[Tensor, "b 3 s s"]:
        """Decode codes, in raster order, to 8-bit images on the tokenizer's device.

        On CPUs, an image does not depend on the rest of its batch. The decoder is prepared on the first call, and
        again when the tokenizer's weights have changed. ``aimamba.data.to_pil`` converts the result to PIL images.

        Args:
            codes: Those of whole images, (B, L) or (B, h, w).

        Raises:
            DataError: The codes have another shape, or there are none of that number in the codebook.
        """
        flat = check_codes(self.generator, codes, len(codes), "codes")
        if flat.shape[1] != (length := self.generator.config.num_tokens):
            raise DataError(f"expected the {length} codes of whole images, got {flat.shape[1]} of each")
        return to_uint8(self._prepared_decoder()(flat.unflatten(1, (self.grid, self.grid))))

    def _prepared_decoder(self) -> FastDecoder:
        with self._preparing:
            if self._decoder is None or not self._decoder.matches(self.tokenizer):
                self._decoder = FastDecoder(self.tokenizer)
            return self._decoder


def _escaped(name: str) -> str:
    """Return a name as it can be written: bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
