"""Routes for images of classes: all at once, or as they are generated."""

import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from aimamba.generation.batch import Job
from aimamba.generation.requests import Made, Preview
from aimamba.serve.errors import as_api_error, body
from aimamba.serve.files import MEDIA_TYPES, Encoding, as_base64, as_zip
from aimamba.serve.schemas import Images, ImagesBody, Picture, StreamBody, error_responses
from aimamba.serve.service import ClientGoneError, ImageFile, Service

ERRORS = (401, 408, 413, 415, 422, 429, 500, 503, 504)


_STREAM = """Server-sent events. `preview`: an unfinished image, grey where it is not generated yet, with the number of
its `tokens`; `image`: a finished one; `done` after the last; `error` in its place if something failed. The data are
JSON; images are in base64. If the client is slow, previews are left out."""


def binary_answers() -> dict[str, Any]:
    """Return the media types of images and archives, for OpenAPI."""
    return {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()}


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1/images", tags=["images"])

    @routes.post(
        "",
        summary="Generate images",
        response_model=Images,
        responses={200: {"content": binary_answers()}, **error_responses(*ERRORS)},
    )
    async def make_images(wanted: ImagesBody, http: Request) -> Response | Images:
        jobs = service.jobs(wanted)
        if wanted.format == "json":
            files = await service.files(http, jobs, wanted.encoding)
            pictures = [picture(service, file, wanted.encoding) for file in files]
            return Images(
                created=int(time.time()), model=service.name, size=service.pipeline.image_size, images=pictures
            )
        return binary(await service.files(http, jobs, wanted.format), wanted.format)

    @routes.post(
        "/stream",
        summary="Generate images and watch them grow",
        description=_STREAM,
        response_class=EventStream,
        status_code=200,
        responses={200: {"content": {"text/event-stream": {}}}, **error_responses(*ERRORS)},
    )
    async def stream_images(wanted: StreamBody, http: Request) -> Response:
        return EventStream(service, service.jobs(wanted), wanted.encoding, wanted.every)

    return routes


def picture(service: Service, file: ImageFile, encoding: Encoding) -> Picture:
    """Return a finished image for JSON."""
    return Picture(
        index=file.number,
        class_name=service.class_name(file.job),
        label=file.job.label,
        prompt=file.job.prompt,
        seed=file.job.config.seed,
        media_type=MEDIA_TYPES[encoding],
        b64_json=as_base64(file.data),
    )


def binary(files: Sequence[ImageFile], encoding: Encoding) -> Response:
    """Return one image as it is, and several as an archive."""
    if len(files) == 1:
        job = files[0].job
        headers = {"X-Label": str(job.label), "X-Seed": str(job.config.seed)}
        return Response(files[0].data, media_type=MEDIA_TYPES[encoding], headers=headers)
    named = [
        (f"{file.number:03}-class{file.job.label}-seed{file.job.config.seed}.{encoding}", file.data) for file in files
    ]
    return Response(as_zip(named), media_type=MEDIA_TYPES["zip"])


class EventStream(Response):
    """Images as server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, service: Service, jobs: Sequence[Job], encoding: Encoding, every: int) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._service, self._jobs, self._encoding, self._every = service, jobs, encoding, every

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until all images are there or the client leaves."""
        begun = False
        try:
            async with aclosing(self._events(receive)) as events:
                async for chunk in events:
                    if not begun:  # an error before the first event has a status of its own
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                        begun = True
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ClientGoneError:
            return
        except Exception as error:
            known = as_api_error(error)
            if not begun or known is None:
                raise
            chunk = _event("error", body(known.status, str(known), known.field))
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, receive: Receive) -> AsyncGenerator[bytes]:
        service, encoding, jobs = self._service, self._encoding, self._jobs
        async with aclosing(service.events(receive, jobs, preview_every=self._every)) as events:
            async for event in events:
                if isinstance(event, Made):
                    file = await service.file(event, jobs[event.number], encoding)
                    yield _event("image", picture(service, file, encoding).model_dump())
                elif isinstance(event, Preview):
                    job, data = jobs[event.number], await service.preview(event, encoding)
                    shown = picture(service, ImageFile(event.number, job, data), encoding).model_dump()
                    yield _event("preview", {**shown, "tokens": event.tokens, "of": service.length})
                else:
                    yield b": still there\n\n"
        yield _event("done", {"images": len(jobs)})


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
