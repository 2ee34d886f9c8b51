"""The model behind the server: jobs of a request, its events for the event loop, images as files."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from fastapi import Request as HttpRequest
from jaxtyping import Int, UInt8
from torch import Tensor

from aimamba.data.class_names import find_classes
from aimamba.errors import ConfigError
from aimamba.generation import SamplingConfig
from aimamba.generation.batch import Job
from aimamba.generation.record import ModelRecord, SampleRecord
from aimamba.generation.requests import ClosedError, Event, Failed, Made, Preview, Request
from aimamba.generation.scheduler import Scheduler
from aimamba.pipeline import Pipeline, Prompt
from aimamba.serve.config import ServeConfig
from aimamba.serve.errors import ApiError, of_failed
from aimamba.serve.files import Encoding, encode
from aimamba.serve.mailbox import Mailbox
from aimamba.serve.schemas import Settings, Wanted

_ALIVE_EVERY = 15.0  # seconds
_SMALL = 3 << 12  # bytes of an image whose PNG takes less time than asking another thread for it, 64 x 64 pixels

Given = int | Prompt
"""What an image is to show: the label of a class, or a prompt."""


class ClientGoneError(Exception):
    """The client has closed its connection."""


class ImageFile(NamedTuple):
    """A finished image as a file.

    Attributes:
        number: Which image of the request it is.
        job: What it was made from.
        data: The file.
    """

    number: int
    job: Job
    data: bytes


class Service:
    """A pipeline whose images many requests share.

    Attributes:
        name: Name of the model.
        pipeline: The model.
        config: Limits.
        length: Tokens of an image.
        scheduler: Generates the images, in a thread that ``running`` starts.
        record: What is kept of the model with its images.
        created: When it was made, in seconds since 1970.
        on_wait: Called with the seconds that a request waited for a place in the batch.
    """

    def __init__(self, pipeline: Pipeline, name: str, config: ServeConfig, tokenizer: str | None = None) -> None:
        """Prepare engine and decoder, so that the first request need not wait for them.

        Args:
            pipeline: The model.
            name: Its name, as the user gave it.
            config: Limits.
            tokenizer: Name of the tokenizer, if it was given separately.

        Raises:
            ConfigError: The engine cannot decode this generator on this machine.
        """
        self.pipeline, self.name, self.config, self.created = pipeline, name, config, int(time.time())
        self.length = pipeline.generator.config.num_tokens
        self.record: ModelRecord = pipeline.record(name, tokenizer)
        self.scheduler = Scheduler(
            pipeline.generator, pipeline.prepare(), self._decode, config.scheduler, blank=pipeline.blank_codes()[0]
        )
        self._uploads = asyncio.Semaphore(2)  # images that are read and encoded at once
        self._stop_at: float | None = None  # when requests are given up, by the monotonic clock
        self._mailboxes: set[Mailbox] = set()
        self.on_wait: Callable[[float], object] = lambda seconds: None
        self._decode(torch.zeros(1, self.length, dtype=torch.long))
        self._thread = threading.Thread(target=self.scheduler.run, name="scheduler", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether images are generated."""
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.alive and self._stop_at is None

    def drain(self) -> None:
        """Take no more requests, and finish those that are there within the time of grace."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self.config.grace_seconds
            self.scheduler.close()
            for mailbox in self._mailboxes.copy():  # another thread may end a request meanwhile
                mailbox.wake()  # it may wait for longer

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Generate meanwhile; at the end, finish what is there."""
        self._thread.start()
        try:
            yield
        finally:
            self.drain()
            await asyncio.to_thread(self._thread.join, self.config.grace_seconds)

    @asynccontextmanager
    async def uploading(self) -> AsyncIterator[None]:
        """Wait for a turn to read an uploaded image and to encode it.

        Raises:
            QueueFullError: Too many images wait already.
            TimeoutError: It took too long.
        """
        self.scheduler.check_room(1)
        async with asyncio.timeout(self.config.request_seconds), self._uploads:
            yield

    @torch.no_grad()
    def _decode(self, codes: Int[Tensor, "b l"]) -> UInt8[Tensor, "b s s 3"]:
        device = self.pipeline.tokenizer.device
        return self.pipeline.decode(codes.to(device)).permute(0, 2, 3, 1).cpu().contiguous()

    def label(self, name: str | int, field: str) -> int:
        """Return the label of a class.

        Raises:
            ApiError: It is unknown or could be several.
        """
        try:
            return self.pipeline.label(name)
        except ConfigError as error:
            raise ApiError(422, str(error), field=field) from error

    def labels_in(self, text: str) -> list[int]:
        """Return the labels of the classes that a text names, separated by commas.

        Raises:
            ApiError: A class is unknown or could be several, or there is none.
        """
        try:
            labels = find_classes(text, self.pipeline.class_names, self.pipeline.generator.config.num_classes)
        except ConfigError as error:
            raise ApiError(422, str(error), field="prompt") from error
        if not labels:
            raise ApiError(422, "the prompt names no class; expected names separated by commas", field="prompt")
        return labels

    def jobs(self, wanted: Wanted) -> list[Job]:
        """Return what a body asks for, class by class.

        Raises:
            ApiError: A class is unknown, or there are too many images.
        """
        labels = [self.label(name, f"classes[{index}]") for index, name in enumerate(wanted.classes or ())]
        shown: Sequence[Given] = labels
        if wanted.prompts is not None:
            beside: Sequence[int | None] = labels or (None,)
            shown = [self.given(text, label, "prompts") for text in wanted.prompts for label in beside]
        elif not labels:
            field = "classes" if self.pipeline.generator.config.text is None else "prompts"
            raise ApiError(422, f"nothing to generate; expected {field}", field=field)
        if wanted.seeds is not None and wanted.n not in (1, len(wanted.seeds)):
            raise ApiError(422, f"n is {wanted.n} and there are {len(wanted.seeds)} seeds; leave n out", field="n")
        count = wanted.n if wanted.seeds is None else len(wanted.seeds)
        self.check_count(len(shown) * count, "seeds" if wanted.seeds else "n")
        if wanted.seeds and "seed" in wanted.model_fields_set:
            raise ApiError(422, "seed has no effect beside seeds; leave one of them out", field="seed")
        seeds = wanted.seeds or self.seeds(wanted.seed, count)
        configs = self.sampling(wanted, seeds)
        return [job for given in shown for job in self.jobs_for(given, configs)]

    def given(self, prompt: str, beside: str | int | None, field: str = "prompt") -> Prompt:
        """Return a prompt with the class beside it.

        Raises:
            ApiError: The model takes no prompts, or there is no such class.
        """
        if self.pipeline.generator.config.text is None:
            raise ApiError(422, "this model takes classes and no prompts", field=field)
        return Prompt(prompt, None if beside is None else self.label(beside, "class_name"))

    def jobs_for(self, given: Given, configs: Sequence[SamplingConfig], **options: Any) -> list[Job]:
        """Return an image for each of some settings; ``options`` are fields of ``Job``."""
        opening = self.pipeline.opening(given) if isinstance(given, Prompt) else None
        negatives = self.pipeline.negatives(configs, len(configs))[1]
        return [
            Job(
                label=self.pipeline.label_of(given),
                config=config,
                prompt=given.text if isinstance(given, Prompt) else None,
                opening=opening,
                negative=None if negatives is None else negatives[number],
                **options,
            )
            for number, config in enumerate(configs)
        ]

    def sampling(self, wanted: Settings, seeds: Iterable[int]) -> list[SamplingConfig]:
        """Return the settings of an image for each seed.

        Raises:
            ApiError: They do not go together, one has no effect, or the negative class is unknown.
        """
        negative = wanted.negative
        if negative is not None and not self.pipeline.is_prompt(negative):
            negative = self.label(negative, "negative")
        try:
            configs = [replace(wanted.sampling(seed), negative=negative) for seed in seeds]
        except ConfigError as error:
            field = str(error).split()[0].replace("-", "_")
            raise ApiError(422, str(error), field=field if field in type(wanted).model_fields else None) from error
        for name, reason in configs[0].without_effect().items():
            raise ApiError(422, f"{name} has no effect {reason}", field=name)
        return configs

    def check_count(self, count: int, field: str) -> None:
        """Check a number of images.

        Raises:
            ApiError: It is larger than a request may ask for.
        """
        most = self.config.images_per_request
        if count > most:
            raise ApiError(422, f"{count} images are more than the {most} that a request may ask for", field=field)

    def seeds(self, first: int, count: int) -> range:
        """Return following seeds.

        Raises:
            ApiError: The last one is too large.
        """
        if first + count > 1 << 63:
            raise ApiError(
                422, f"seed {first} is too large for {count} images: the last must be below 2^63", field="seed"
            )
        return range(first, first + count)

    async def files(self, http: HttpRequest, jobs: Sequence[Job], encoding: Encoding) -> list[ImageFile]:
        """Generate all images of a request.

        Raises:
            ApiError: It failed, or took too long.
            QueueFullError: Too many images wait.
            ClientGoneError: The client has left.
        """
        files: list[ImageFile] = []
        async with aclosing(self.events(http.receive, jobs)) as events:
            async for event in events:
                if isinstance(event, Made):
                    files.append(await self.file(event, jobs[event.number], encoding))
        return sorted(files)

    async def file(self, made: Made, job: Job, encoding: Encoding) -> ImageFile:
        """Return a finished image as a file; a PNG holds its settings."""
        text = SampleRecord(
            class_name=self.class_name(job),
            label=job.label,
            prompt=job.prompt,
            sampling=job.config,
            model=self.record,
            edit=job.edit,
        ).to_text()
        image = made.image if job.finish is None else job.finish(made.image)
        return ImageFile(made.number, job, await self._encoded(image, encoding, text))

    async def preview(self, preview: Preview, encoding: Encoding) -> bytes:
        """Return an unfinished image as a file: grey where it is not generated yet."""
        return await self._encoded(preview.image, encoding)

    async def _encoded(self, image: UInt8[Tensor, "s s 3"], encoding: Encoding, text: str | None = None) -> bytes:
        if encoding == "png" and image.numel() <= _SMALL:
            return encode(image.numpy(), encoding, text)
        return await asyncio.to_thread(encode, image.numpy(), encoding, text)

    def class_name(self, job: Job) -> str:
        """Return the name of a job's class; the null class, as of a prompt alone, has none."""
        return self.pipeline.class_name(job.label)

    async def events(
        self, receive: Callable[[], Awaitable[object]], jobs: Sequence[Job], *, preview_every: int = 0
    ) -> AsyncGenerator[Event | None]:
        """Generate images; yield previews and images as they come, and None if there was none for a while.

        However it ends, the images that are not finished leave the batch.

        Args:
            receive: Returns the next message of the client, whose body has been read: that it has left.
            jobs: The images.
            preview_every: Tokens between two previews of an image.

        Raises:
            ApiError: A request failed.
            QueueFullError: Too many images wait.
            ClosedError: The server is shutting down.
            TimeoutError: It took too long.
            ClientGoneError: The client has left.
        """
        mailbox = Mailbox(asyncio.get_running_loop())
        request: Request = self.scheduler.submit(jobs, mailbox.put, preview_every=preview_every)
        gone = asyncio.ensure_future(_wait_for_leaving(receive))
        gone.add_done_callback(lambda _: mailbox.wake())
        self._mailboxes.add(mailbox)
        left, deadline = len(jobs), time.monotonic() + self.config.request_seconds
        try:
            while left:
                until = deadline if self._stop_at is None else min(deadline, self._stop_at)
                event = await mailbox.get(min(_ALIVE_EVERY, until - time.monotonic()))
                if gone.done():
                    raise ClientGoneError
                if event is None and time.monotonic() >= until:
                    raise TimeoutError if until == deadline else ClosedError
                if isinstance(event, Failed):
                    raise of_failed(event)
                left -= isinstance(event, Made)
                yield event
        finally:
            self.scheduler.cancel(request)
            if request.begun is not None:
                self.on_wait(request.begun - request.submitted)
            self._mailboxes.discard(mailbox)
            gone.cancel()


async def _wait_for_leaving(receive: Callable[[], Awaitable[object]]) -> None:
    while True:
        message = await receive()
        if isinstance(message, dict) and message["type"] == "http.disconnect":
            return
