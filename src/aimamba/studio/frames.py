"""What the stage of the page shows: one image, a sheet, a strip, and what went wrong.

A frame is a JSON object. ``tiles`` says what stands where, ``news`` what has changed since the last frame. The page
plays the news one after the other, so a fast model can be watched too.

Shape letters: L tokens of an image, s side of an image.
"""

import asyncio
import base64
import io
import logging
import re
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from aimamba.generation.batch import Job
from aimamba.generation.requests import Made, Preview
from aimamba.serve.errors import ApiError, as_api_error
from aimamba.serve.files import as_base64
from aimamba.serve.service import Service
from aimamba.studio.choice import name_of, shown

Frame = dict[str, Any]
Kind = Literal["image", "sheet", "strip"]
_News = dict[str, Any] | Exception | None  # None: that was all

_log = logging.getLogger(__name__)

_PREVIEWS = 64  # of an image, at most
_SMALL_PREVIEWS = 16  # of each image of many
_QUALITY = 85  # of previews; finished images are without loss


def data_url(content: bytes, media_type: str) -> str:
    """Return a file as an address that holds it."""
    return f"data:{media_type};base64,{as_base64(content)}"


def write_codes(codes: Int[Tensor, " l"]) -> str:
    """Return codes as text for the page, which gives them back to ``read_codes``."""
    return as_base64(codes.cpu().numpy().astype("<i4").tobytes())


def read_codes(text: object, service: Service) -> Int[Tensor, "1 l"]:
    """Return the codes that the page sent.

    Raises:
        ApiError: They are not the codes of an image of this model.
    """
    try:
        raw = base64.b64decode(str(text)[: 8 * service.length], validate=True)
        codes = torch.from_numpy(np.frombuffer(raw, dtype="<i4").astype(np.int64))[None]
    except ValueError:
        codes = None
    if codes is None or codes.shape[1] != service.length or not 0 <= int(codes.min()) <= int(codes.max()) < (
        service.pipeline.generator.config.vocab_size
    ):  # fmt: skip
        raise ApiError(422, "this image does not come from this model; open its file instead", field="image")
    return codes


def file_name(class_name: str, seed: int) -> str:
    """Return a name for the file of an image."""
    return f"{re.sub(r'[^0-9A-Za-z]+', '-', class_name).strip('-') or 'image'}-seed{seed}.png"


def failure(error: Exception) -> Frame:
    """Return the frame that says what went wrong; a bug is logged and told as one."""
    known = as_api_error(error)
    if known is None:
        _log.error("a request of the page failed", exc_info=error)
        known = ApiError(500, "Something went wrong on the server; its log says what.")
    message = str(known)
    if known.status == 429:
        message = "Many images are waiting already. Try again in a moment."
    elif known.status == 503:
        message = "The server is shutting down. Try again when it is back."
    return {"run": secrets.token_hex(4), "state": "error", "message": message[:1].upper() + message[1:]}


async def frames(service: Service, jobs: Sequence[Job], kind: Kind) -> AsyncGenerator[Frame]:
    """Generate images as every other client's are, and yield frames as they grow; the last one has ``done``.

    Whatever happens, the page is told of it in a frame; when it goes away, the images leave the batch.
    """
    run, total = secrets.token_hex(4), service.length
    tiles = [
        {**shown(service, job), "seed": str(job.config.seed), "about": job.config.describe()}
        for job in jobs
    ]  # fmt: skip
    plan = {"run": run, "state": "drawing", "kind": kind, "tiles": tiles, "of": total, "news": []}
    yield plan
    news: asyncio.Queue[_News] = asyncio.Queue()
    reader = asyncio.create_task(_read(service, jobs, news))
    try:
        ended = False
        while not ended:
            found = [await news.get()]
            while not news.empty():
                found.append(news.get_nowait())
            for each in found:
                if isinstance(each, Exception):
                    raise each
            ended = found[-1] is None
            yield {
                **plan,
                "state": "done" if ended else "drawing",
                "news": [each for each in found if each is not None],
            }
    except Exception as error:
        yield failure(error)
    finally:
        reader.cancel()


async def _read(
    service: Service, jobs: Sequence[Job], news: "asyncio.Queue[dict[str, Any] | Exception | None]"
) -> None:
    """Read what the scheduler makes, faster than the page takes it, so that no preview is lost."""
    every = max(1, service.length // (_PREVIEWS if len(jobs) == 1 else _SMALL_PREVIEWS))
    try:
        async with aclosing(service.events(_stays, jobs, preview_every=every)) as events:
            async for event in events:
                if isinstance(event, Made):
                    file = await service.file(event, jobs[event.number], "png")
                    news.put_nowait({
                        "tile": event.number, "tokens": service.length, "src": data_url(file.data, "image/png"),
                        "codes": write_codes(event.codes),
                        "name": file_name(name_of(service, file.job), file.job.config.seed),
                    })  # fmt: skip
                elif isinstance(event, Preview):
                    news.put_nowait({
                        "tile": event.number, "tokens": event.tokens,
                        "src": await asyncio.to_thread(_preview, event.image.numpy()),
                    })  # fmt: skip
        news.put_nowait(None)
    except Exception as error:
        news.put_nowait(error)


async def _stays() -> object:
    """Wait forever: a page that leaves is noticed by Gradio, which cancels the handler."""
    return await asyncio.Event().wait()


def _preview(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="WEBP", quality=_QUALITY)
    return data_url(file.getvalue(), "image/webp")
