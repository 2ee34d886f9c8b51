"""Routes that begin with an uploaded image, or lie between two classes."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from fastapi import APIRouter, Request, Response, UploadFile
from PIL import Image
from torch import Tensor

from aimamba.data.files import decode_image
from aimamba.errors import AimambaError
from aimamba.generation.batch import Job
from aimamba.generation.inpainting import inpaint
from aimamba.generation.record import EditRecord
from aimamba.pipeline.images import read_masks
from aimamba.serve.errors import ApiError
from aimamba.serve.files import Encoding
from aimamba.serve.forms import Completion, Inpainting, Interpolation, edit_form
from aimamba.serve.images import ERRORS, binary, binary_answers, picture
from aimamba.serve.schemas import Images, error_responses
from aimamba.serve.service import Service

Result = TypeVar("Result")


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1", tags=["editing"])
    answers = {200: {"content": binary_answers()}, **error_responses(*ERRORS)}
    pipeline = service.pipeline

    async def answer(http: Request, jobs: list[Job], wanted: Completion | Interpolation) -> Response | Images:
        encoding: Encoding = wanted.encoding if wanted.format == "json" else wanted.format
        files = await service.files(http, jobs, encoding)
        if wanted.format != "json":
            return binary(files, wanted.format)
        pictures = [picture(service, file, encoding) for file in files]
        return Images(created=int(time.time()), model=service.name, size=pipeline.image_size, images=pictures)

    async def read(upload: UploadFile, field: str, convert: Callable[[Image.Image], Tensor]) -> Tensor:
        """Decode an upload and convert it; few at a time, because an image may be large."""
        most = service.config.upload_pixels
        async with service.uploading():
            content = await upload.read()
            return await _checked(lambda: convert(decode_image(content, most_pixels=most)), field)

    async def guessed(wanted: Completion | Inpainting, codes: Tensor, known: Tensor) -> int:
        if wanted.class_name is not None:
            return service.label(wanted.class_name, "class_name")
        if (told := await _told(service, wanted.image)) is not None:
            return told
        async with service.uploading():
            labels = await _checked(lambda: pipeline.guess(codes, None, known), "class_name")
        return int(labels[0])

    @routes.post("/completions", summary="Keep the top of an image and generate the rest", response_model=Images,
                 responses=answers)  # fmt: skip
    async def complete(wanted: edit_form(Completion), http: Request) -> Response | Images:  # type: ignore[valid-type]
        if wanted.keep_rows >= pipeline.grid:
            raise ApiError(422, f"keep_rows must be below {pipeline.grid}, got {wanted.keep_rows}", field="keep_rows")
        service.check_count(wanted.n, "n")
        configs = service.sampling(wanted, service.seeds(wanted.seed, wanted.n))
        codes = await read(wanted.image, "image", lambda image: pipeline.encode(image, fit=wanted.fit))
        kept = pipeline.first_tokens(wanted.keep_rows * pipeline.grid)
        label = await guessed(wanted, codes, kept)
        known = codes[0].cpu().where(kept[0], -1)
        edit = EditRecord(command="complete", keep_rows=wanted.keep_rows)
        return await answer(
            http, [Job(label=label, config=config, known=known, edit=edit) for config in configs], wanted
        )

    @routes.post("/inpaintings", summary="Draw a masked part of an image again", response_model=Images,
                 responses=answers)  # fmt: skip
    async def paint(wanted: edit_form(Inpainting), http: Request) -> Response | Images:  # type: ignore[valid-type]
        service.check_count(wanted.n, "n")
        candidates = _candidates(wanted)
        configs = service.sampling(wanted, service.seeds(wanted.seed, wanted.n))
        codes = await read(wanted.image, "image", lambda image: pipeline.encode(image, fit=wanted.fit))
        mask = await read(wanted.mask, "mask", lambda mask: read_masks(mask, 1, pipeline.image_size, pipeline.grid))
        label = await guessed(wanted, codes, ~mask)
        masked = tuple(mask[0].nonzero().flatten().tolist())
        edit = EditRecord(
            command="inpaint", masked=masked, method=wanted.method, candidates=candidates, keep_pixels=False
        )
        jobs = [
            Job(
                label=label,
                config=config,
                edit=edit,
                places=candidates,
                run=lambda config=config: inpaint(  # type: ignore[misc]
                    pipeline.generator,
                    torch.tensor([label]),
                    [config],
                    codes=codes,
                    mask=mask,
                    method=wanted.method,
                    candidates=candidates,
                    engine=pipeline.prepare(),
                ),
            )
            for config in configs
        ]
        return await answer(http, jobs, wanted)

    @routes.post("/interpolations", summary="Generate images on the way from one class to another",
                 response_model=Images, responses=answers)  # fmt: skip
    async def between(wanted: Interpolation, http: Request) -> Response | Images:
        service.check_count(wanted.steps, "steps")
        [config] = service.sampling(wanted, [wanted.seed])
        ends = service.label(wanted.a, "a"), service.label(wanted.b, "b")
        names = tuple(pipeline.class_name(label) for label in ends)
        weights = await _checked(lambda: pipeline.between(*ends, wanted.steps, wanted.path), "steps")
        jobs = []
        for step in range(wanted.steps):
            share = step / (wanted.steps - 1)
            edit = EditRecord(command="interpolate", classes=names, share=share, path=wanted.path)
            run = lambda step=step: pipeline.generate(weights[step : step + 1], [config], seeds=[config.seed])  # noqa: E731
            jobs.append(Job(label=ends[share > 0.5], config=config, edit=edit, run=run))
        return await answer(http, jobs, wanted)

    return routes


def _candidates(wanted: Inpainting) -> int:
    """Return how many candidates there are for each image."""
    if wanted.method != "plain":
        return wanted.candidates
    if "candidates" in wanted.model_fields_set:
        raise ApiError(422, "candidates has no effect with method plain", field="candidates")
    return 1


async def _told(service: Service, upload: UploadFile) -> int | None:
    """Return the class in the settings of an upload."""
    await upload.seek(0)
    return service.pipeline.given_in(await upload.read())


async def _checked(work: Callable[[], Result], field: str) -> Result:
    """Do some work in a thread; what is wrong with a field is said of it."""
    try:
        return await asyncio.to_thread(work)
    except AimambaError as error:
        raise ApiError(422, f"{field}: {error}", field=field) from error
