"""A small image of each class for the gallery, made by the model itself and kept for the next start."""

import asyncio
import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from PIL.Image import Resampling

from aimamba.errors import AimambaError
from aimamba.files import cache_folder, write_atomically
from aimamba.generation import SamplingConfig
from aimamba.generation.batch import Job
from aimamba.generation.requests import ClosedError, Made, QueueFullError
from aimamba.serve.errors import ApiError
from aimamba.serve.service import Service

_log = logging.getLogger(__name__)

_CONFIG = SamplingConfig(cfg_scale=2.0, temperature=0.6, seed=3)
_VERSION = 1  # counted up when the images of a model change
_SIDE = 128  # pixels, at most
_AT_ONCE = 4  # images, so that little of the server is taken
_PAUSE = 1.0  # seconds, after the server had no room


class Thumbnails:
    """Thumbnails of all classes, which are there one after the other.

    Attributes:
        ready: The files by label.
        total: How many there will be.
    """

    def __init__(self, service: Service, folder: Path | None = None) -> None:
        """Look for what an earlier start has left.

        Args:
            service: The model.
            folder: Where they are kept; by default in the cache, by the weights they come from.
        """
        self._service = service
        self._folder = folder or cache_folder() / "studio" / f"{service.record.fingerprint[:32]}-{_VERSION}"
        shape = service.pipeline.generator.config
        self.total = shape.num_classes if shape.text is None else 0  # a page with prompts has no gallery
        self.ready: dict[int, bytes] = dict(self._kept())

    def _kept(self) -> Iterator[tuple[int, bytes]]:
        for label in range(self.total):
            with contextlib.suppress(OSError, ValueError, SyntaxError):  # missing or damaged
                content = self._path(label).read_bytes()
                Image.open(io.BytesIO(content), formats=("WEBP",)).verify()
                yield label, content

    async def make(self) -> None:
        """Make those that are missing, a few at a time; others need not wait for them.

        What goes wrong is logged: the page works without them.
        """
        missing = [label for label in range(self.total) if label not in self.ready]
        while missing:
            part, missing = missing[:_AT_ONCE], missing[_AT_ONCE:]
            try:
                await self._make(part)
            except (QueueFullError, TimeoutError):
                missing = part + missing
                await asyncio.sleep(_PAUSE)
            except ClosedError:
                return
            except (ApiError, AimambaError, OSError) as error:
                _log.warning("thumbnails cannot be made: %s", error)
                return

    async def _make(self, labels: list[int]) -> None:
        jobs = [Job(label=label, config=_CONFIG) for label in labels]
        async with contextlib.aclosing(self._service.events(_stays, jobs)) as events:
            async for event in events:
                if isinstance(event, Made):
                    label = labels[event.number]
                    self.ready[label] = await asyncio.to_thread(self._keep, label, event.image.numpy())

    def _keep(self, label: int, pixels: object) -> bytes:
        image = Image.fromarray(pixels)  # type: ignore[arg-type]
        image.thumbnail((_SIDE, _SIDE), Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, format="WEBP", lossless=True)
        content = file.getvalue()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(label), lambda draft: draft.write_bytes(content))
        except OSError as error:  # a full or read-only disk: they are made again at the next start
            _log.info("a thumbnail cannot be kept: %s", error)
        return content

    def _path(self, label: int) -> Path:
        return self._folder / f"{label}.webp"


async def _stays() -> object:
    return await asyncio.Event().wait()
