"""Routes that begin with an uploaded image, or lie between two classes."""

import time
from collections.abc import Callable

from fastapi import APIRouter, Request, Response, UploadFile
from PIL import Image
from torch import Tensor

from aimamba.generation.batch import Job
from aimamba.pipeline.images import Fit, read_images, read_masks
from aimamba.serve.edit_jobs import (
    Result,
    check_rows,
    completions,
    given_for,
    inpaintings,
    interpolations,
    read_image,
)
from aimamba.serve.errors import ApiError
from aimamba.serve.files import Encoding
from aimamba.serve.forms import Completion, Inpainting, Interpolation, edit_form
from aimamba.serve.images import ERRORS, binary, binary_answers, picture
from aimamba.serve.schemas import Images, error_responses
from aimamba.serve.service import Given, Service


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

    async def read(upload: UploadFile, field: str, convert: Callable[[Image.Image], Result]) -> Result:
        return await read_image(service, await upload.read(), field, convert)

    def opened(image: Image.Image, fit: Fit) -> tuple[Tensor, Tensor]:
        pixels = read_images(image, pipeline.image_size, fit)
        return pixels, pipeline.encode(pixels)

    async def asked(wanted: Completion | Inpainting, codes: Tensor, known: Tensor) -> Given:
        if wanted.prompt is not None:
            return service.given(wanted.prompt, wanted.class_name)
        await wanted.image.seek(0)
        return await given_for(service, wanted.class_name, codes, known, await wanted.image.read())

    @routes.post("/completions", summary="Keep the top of an image and generate the rest", response_model=Images,
                 responses=answers)  # fmt: skip
    async def complete(wanted: edit_form(Completion), http: Request) -> Response | Images:  # type: ignore[valid-type]
        check_rows(service, wanted.keep_rows)
        service.check_count(wanted.n, "n")
        configs = service.sampling(wanted, service.seeds(wanted.seed, wanted.n))
        codes = await read(wanted.image, "image", lambda image: pipeline.encode(image, fit=wanted.fit))
        kept = pipeline.first_tokens(wanted.keep_rows * pipeline.grid)
        given = await asked(wanted, codes, kept)
        return await answer(http, completions(service, codes, wanted.keep_rows, given, configs), wanted)

    @routes.post("/inpaintings", summary="Draw a masked part of an image again", response_model=Images,
                 responses=answers)  # fmt: skip
    async def paint(wanted: edit_form(Inpainting), http: Request) -> Response | Images:  # type: ignore[valid-type]
        service.check_count(wanted.n, "n")
        candidates = _candidates(wanted)
        configs = service.sampling(wanted, service.seeds(wanted.seed, wanted.n))
        pixels, codes = await read(wanted.image, "image", lambda image: opened(image, wanted.fit))
        mask = await read(wanted.mask, "mask", lambda mask: read_masks(mask, 1, pipeline.image_size, pipeline.grid))
        given = await asked(wanted, codes, ~mask)
        kept = pixels if wanted.keep_pixels else None
        jobs = inpaintings(service, codes, mask, given, configs, method=wanted.method, candidates=candidates, kept=kept)
        return await answer(http, jobs, wanted)

    @routes.post("/interpolations", summary="Generate images on the way from one class to another",
                 response_model=Images, responses=answers)  # fmt: skip
    async def between(wanted: Interpolation, http: Request) -> Response | Images:
        service.check_count(wanted.steps, "steps")
        [config] = service.sampling(wanted, [wanted.seed])
        a, b = (service.given(str(end), None, "prompts") if wanted.prompts else end for end in (wanted.a, wanted.b))
        jobs = await interpolations(service, a, b, wanted.steps, config, wanted.path)
        return await answer(http, jobs, wanted)

    return routes


def _candidates(wanted: Inpainting) -> int:
    """Return how many candidates there are for each image."""
    if wanted.method != "plain":
        return wanted.candidates
    if "candidates" in wanted.model_fields_set:
        raise ApiError(422, "candidates has no effect with method plain", field="candidates")
    return 1
