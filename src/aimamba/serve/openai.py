"""The route that clients of OpenAI's API know: the prompt names classes."""

import secrets
import time

from fastapi import APIRouter, Request

from aimamba.serve.errors import ApiError
from aimamba.serve.files import Encoding, as_base64
from aimamba.serve.schemas import GeneratedPicture, Generations, GenerationsBody, error_responses
from aimamba.serve.service import Service

_RANDOM_SEEDS = 1 << 32


def router(service: Service) -> APIRouter:
    """Return the route."""
    routes = APIRouter(prefix="/v1/images", tags=["OpenAI"])
    side = service.pipeline.image_size
    size = f"{side}x{side}"

    @routes.post(
        "/generations",
        summary="Generate images as OpenAI's clients ask for them",
        responses=error_responses(401, 408, 413, 415, 422, 429, 500, 503, 504),
    )
    async def generations(wanted: GenerationsBody, http: Request) -> Generations:
        if wanted.model not in (None, service.name):
            raise ApiError(422, f"there is no model {wanted.model!r}; there is {service.name!r}", field="model")
        if wanted.size not in (None, "auto", size):
            raise ApiError(422, f"size {wanted.size!r} cannot be had: this model's images are {size}", field="size")
        takes_prompts = service.pipeline.generator.config.text is not None
        shown = [service.given(wanted.prompt, None)] if takes_prompts else service.labels_in(wanted.prompt)
        count = wanted.n or len(shown)
        service.check_count(count, "n")
        first = secrets.randbelow(_RANDOM_SEEDS) if wanted.seed is None else wanted.seed
        configs = service.sampling(wanted, service.seeds(first, count))
        jobs = [
            job for index, config in enumerate(configs) for job in service.jobs_for(shown[index % len(shown)], [config])
        ]
        encoding: Encoding = wanted.output_format or "png"
        files = await service.files(http, jobs, encoding)
        pictures = [
            GeneratedPicture(
                b64_json=as_base64(file.data),
                revised_prompt=file.job.prompt or service.class_name(file.job),
                seed=file.job.config.seed,
            )
            for file in files
        ]
        return Generations(created=int(time.time()), data=pictures, output_format=encoding, size=size)

    return routes
