"""From class names to images: tokenizer, generator and class names in one object."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from tqdm import tqdm

from aimamba.checkpoints.checkpoint import Checkpoint
from aimamba.checkpoints.hub import Hub, HubArguments
from aimamba.devices import resolve_dtype
from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig
from aimamba.models.pretrained import one_dtype
from aimamba.networks.sentence import MINILM
from aimamba.pipeline.card import ModelCard, shown_classes, write_card
from aimamba.pipeline.drawing import Progress, Settings, whole
from aimamba.pipeline.editing import Editing
from aimamba.pipeline.habits import after_steps, check_habits, check_method, seeds_of, with_habits
from aimamba.pipeline.images import OutputType, write_images
from aimamba.pipeline.loading import SaveGenerator, as_device, load_parts, save_parts
from aimamba.pipeline.prompts import Class, Prompt, listed
from aimamba.pipeline.publishing import upload


class Pipeline(Editing):
    """A generator and the tokenizer that it was trained with.

    Attributes:
        tokenizer: Decodes codes to images.
        generator: Generates codes from class labels.
        class_names: Name of every label; empty if they are not known.
        vocabulary: Of the captions that the generator takes, if it takes any.
    """

    _bar_settings: Mapping[str, Any] = {"disable": True}

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | Checkpoint,
        *,
        tokenizer: str | Path | Checkpoint | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        engine: str = "auto",
        foreign_tokenizer: bool = False,
        verify: bool | None = None,
        text_encoder: str | Path = MINILM,
        torch_dtype: str | torch.dtype | None = None,
        **hub: Unpack[HubArguments],
    ) -> "Pipeline":
        """Load generator, tokenizer and class names.

        Args:
            source: Name of a packaged model (``avatars-64``), folder of a saved pipeline or a training run, an
                official AiM checkpoint, a hub id, or a checkpoint that is open already.
            tokenizer: Where the tokenizer is, if ``source`` holds none.
            device: Device of the weights, or ``auto`` for the fastest; on ``meta`` they have shapes but no values.
            dtype: Dtype of the weights, or its name such as ``bfloat16``; float32 by default, ``auto`` for that of the
                files. One narrower than float32 does not change the codes of given images, see ``VQModel.cast``.
            engine: Computes the generator's steps, see ``aimamba.generation.engines``.
            foreign_tokenizer: Accept another tokenizer than the one whose codes the generator was trained on.
            verify: Whether to compare the weights with their SHA-256 sums; by default they are, up to 1 GB.
            text_encoder: See ``Pipeline``.
            torch_dtype: Another name of ``dtype``.
            hub: ``revision``, ``cache_dir``, ``local_files_only``, ``token``, ``subfolder``, see ``HubArguments``.

        Raises:
            CheckpointError: A part is missing or damaged.
            ConfigError: There is no such device, dtype or argument, or the tokenizer is a foreign one.
        """
        place = Hub.of(hub)
        asked = "auto" if (found := one_dtype(dtype, torch_dtype)) is None else found
        parts = load_parts(source, tokenizer=tokenizer, device=device, dtype=asked, verify=verify, hub=place)
        return cls(*parts, engine=engine, foreign_tokenizer=foreign_tokenizer, text_encoder=text_encoder)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        card: ModelCard | None = None,
        save_generator: SaveGenerator | None = None,
    ) -> None:
        """Write ``tokenizer/``, ``generator/``, ``pipeline.json`` and, with a card, ``README.md`` into ``folder``.

        The generator's config names the tokenizer, in the dtype in which it is written. One that was trained with
        another tokenizer keeps the name of that one.

        Args:
            folder: The folder; made if needed.
            dtype: Dtype of the matrices in the files. By default weights that were loaded from a narrower dtype and
                have not changed return to it, and others are written as they are.
            card: What the page of the model says, see ``ModelCard``. A ``README.md`` of yours is not replaced.
            save_generator: Writes the generator into the folder it is called with, with the config it is called with;
                by default its weights are written whole.

        Raises:
            ConfigError: There is no such dtype.
        """
        save_parts(
            Path(folder), self.tokenizer, self.generator, self.class_names, self.vocabulary, dtype, save_generator
        )
        if card is None:
            return
        shown: list[Class] = [*map(Prompt, card.prompts)] or [*shown_classes(self.generator.config.num_classes)]
        shown = shown if card.samples else []
        images = self(shown, card.samples, SamplingConfig(cfg_scale=1.5)) if shown else []
        write_card(
            Path(folder),
            card,
            generator=self.generator,
            tokenizer=self.tokenizer,
            class_names=self.class_names,
            rows=[images[i * card.samples : (i + 1) * card.samples] for i in range(len(shown))],
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: ModelCard | None = None,
        dtype: str | torch.dtype | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Save the pipeline with its card and upload it to the Hugging Face hub.

        Args:
            repo_id: ``owner/name`` of the model repository; it is made if there is none.
            card: What its page says; by default the model's name, shape, classes and four samples of each of up to
                eight classes.
            dtype: As for ``save_pretrained``.
            private: Whether a new repository is private; by default as the owner's settings say.
            token: Access token; by default the one stored on this machine.
            commit_message: Message of the commit.
            revision: Branch to upload to, made if there is none; by default the main branch.
            create_pr: Open a pull request instead.

        Returns:
            The address of the commit or the pull request.

        Raises:
            CheckpointError: The id is none, the token is missing or not allowed to write, or the hub cannot be reached.
        """
        card = ModelCard(samples=4) if card is None else card
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.save_pretrained(folder, dtype=dtype, card=replace(card, name=card.name or repo_id))
            return upload(
                folder,
                repo_id,
                private=private,
                token=token,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )

    def to(
        self,
        *places: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> "Pipeline":
        """Move the weights to a device, cast them to a dtype, or both, in place; return the pipeline.

        Norms and the like stay float32, and so does what decides the codes of images; see ``AiM.cast`` and
        ``VQModel.cast``.

        Args:
            places: Devices and dtypes, or their names, such as ``"cuda"``, ``torch.bfloat16`` or ``"auto"``, which is
                the fastest device.
            device: A device, by name of the argument.
            dtype: A dtype, by name of the argument.

        Raises:
            ConfigError: There is no such device or dtype.
        """
        found = [_device_or_dtype(each) for each in places]
        found += [] if device is None else [as_device(device)]
        found += [] if dtype is None else [resolve_dtype(dtype)]
        for part in (self.generator, self.tokenizer):
            for place in found:
                if isinstance(place, torch.device):
                    part.to(place)
                else:
                    part.cast(place)
        return self

    def __call__(
        self,
        labels: Iterable[Class] = (),
        n: int | SamplingConfig = 1,
        config: Settings | Sequence[Settings] = SamplingConfig(),  # noqa: B008 - frozen
        *,
        prompts: str | Sequence[str] = (),
        batch_size: int = 16,
        progress: Progress | None = None,
        output_type: OutputType = "pil",
        **habits: Any,
    ) -> Any:
        """Generate ``n`` images of each class or prompt.

        Args:
            labels: Class names or numbers, mixtures such as ``{"planets": 0.7, "clay": 0.3}``, or ``Prompt``; an array
                or a tensor of numbers will do.
            prompts: Sentences, for a generator that is trained on captions; with ``labels``, each of them in each of
                these classes.
            n: Images of each class. Image j of every class has the seed ``config.seed + j``. Settings of sampling may
                stand in its place; ``n`` is 1 then.
            config: Settings of sampling, or a mapping of them; for all classes, or one for each.
            batch_size: Images generated at once. It changes speed and memory, not the images.
            progress: Called after every step.
            output_type: ``pil``, ``numpy``, ``tensor``, ``np`` or ``pt``, see ``OutputType``.
            habits: Any setting of sampling, which goes before ``config``'s; and as diffusers names them
                ``guidance_scale``, ``num_images_per_prompt``, ``generator`` and ``callback_on_step_end``, see
                docs/habits.md.

        Returns:
            Square images, class by class.

        Raises:
            ConfigError: A label, setting or argument is unknown, or a number is out of range.
        """
        if isinstance(n, SamplingConfig):
            config, n = n, 1
        check_habits(habits, n, output_type)
        config, each = with_habits(config, habits), habits.get("num_images_per_prompt", n)
        each, batch_size = whole("n", each), whole("batch_size", batch_size)
        if each < 1 or batch_size < 1:
            raise ConfigError(f"expected n and batch size to be at least 1, got n {each}, batch size {batch_size}")
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        labels = listed(labels)
        if texts and any(isinstance(label, Prompt) for label in labels):
            raise ConfigError("prompts stand beside classes; give all prompts as prompts, or all as labels")
        if texts:
            beside: Sequence[Any] = labels or [None]
            labels = [Prompt(text, label) for text in texts for label in beside]
        wanted = self.labels(labels)
        given = wanted.repeat_interleave(each, dim=0)
        configs, seeds = self.each_image(config, len(wanted), each)

        def start(part: slice) -> Iterator[Tensor]:
            return self.generate(given[part], configs[part], seeds=seeds[part])

        if "generator" in habits:
            seeds = seeds_of(habits["generator"], len(given))
        told = [progress] if progress is not None else []
        if (callback := habits.get("callback_on_step_end")) is not None:
            told.append(after_steps(callback, self))
        with self._progress_bar(len(given)) as bar:
            told.append(bar)

            def tell(done: int, total: int) -> None:
                for one in told:
                    one(done, total)

            images = self.draw(start, len(given), batch_size, tell)
        return write_images(images, output_type)

    if not TYPE_CHECKING:  # a type checker would take every name

        def __getattr__(self, name: str) -> Any:
            check_method(name)
            return super().__getattribute__(name)  # which says what is missing

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Show a bar while images are generated, with tqdm's settings, such as ``desc`` and ``leave``.

        Args:
            settings: Of tqdm. ``disable=True`` shows none, as before the first call.
        """
        self._bar_settings = {"disable": False, **settings}

    @contextmanager
    def _progress_bar(self, images: int) -> Iterator[Progress]:
        settings = {"unit": "token", "total": images * self.generator.config.num_tokens, **self._bar_settings}
        with tqdm(**settings) as bar:
            yield lambda done, _: bar.update(done - bar.n)


def _device_or_dtype(place: str | torch.device | torch.dtype) -> torch.device | torch.dtype:
    if isinstance(place, str | torch.dtype):
        named = getattr(torch, str(place).removeprefix("torch."), None)
        if isinstance(named, torch.dtype):
            return resolve_dtype(place)
    assert not isinstance(place, torch.dtype)
    return as_device(place)
