"""What the routes that edit, and whatever else edits, hand to the scheduler.

Shape letters: L tokens of an image, h w grid of codes.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

from jaxtyping import Bool, Int, UInt8
from PIL import Image
from torch import Tensor

from aimamba.data.files import decode_image
from aimamba.errors import AimambaError
from aimamba.generation import SamplingConfig
from aimamba.generation.batch import Job
from aimamba.generation.inpainting import inpaint
from aimamba.generation.record import EditRecord
from aimamba.pipeline import Prompt
from aimamba.pipeline.images import put_back
from aimamba.serve.errors import ApiError
from aimamba.serve.service import Given, Service

Result = TypeVar("Result")

Method = Literal["resample", "best", "plain"]


async def checked(work: Callable[[], Result], field: str) -> Result:
    """Do some work in a thread; what is wrong with a field is said of it.

    Raises:
        ApiError: The work raised an error of ours.
    """
    try:
        return await asyncio.to_thread(work)
    except AimambaError as error:
        raise ApiError(422, f"{field}: {error}", field=field) from error


async def read_image(service: Service, content: bytes, field: str, convert: Callable[[Image.Image], Result]) -> Result:
    """Decode the file of an image and convert it; few at a time, because an image may be large.

    Raises:
        ApiError: It is no image, has too many pixels, or cannot be converted.
    """
    most = service.config.upload_pixels
    async with service.uploading():
        return await checked(lambda: convert(decode_image(content, most_pixels=most)), field)


async def given_for(
    service: Service,
    name: str | int | None,
    codes: Int[Tensor, "1 *grid"],
    known: Bool[Tensor, "1 l"],
    content: bytes = b"",
) -> Given:
    """Return what an edited image is to show: a class by name, or what the settings in its PNG say.

    Without either, it is the class under which its known codes are likeliest.

    Raises:
        ApiError: There is no such class, or nothing is known that would tell it.
    """
    if name is not None:
        return service.label(name, "class_name")
    if (told := service.pipeline.given_in(content)) is not None:
        return told
    async with service.uploading():
        labels = await checked(lambda: service.pipeline.guess(codes, None, known), "class_name")
    return int(labels[0])


def check_rows(service: Service, keep_rows: int) -> None:
    """Check a number of rows of tokens to keep.

    Raises:
        ApiError: They are all of them.
    """
    grid = service.pipeline.grid
    if keep_rows >= grid:
        raise ApiError(422, f"keep_rows must be below {grid}, got {keep_rows}", field="keep_rows")


def completions(
    service: Service,
    codes: Int[Tensor, "1 *grid"],
    keep_rows: int,
    given: Given,
    configs: Sequence[SamplingConfig],
) -> list[Job]:
    """Return images that keep the top rows of given codes, one for each config."""
    kept = service.pipeline.first_tokens(keep_rows * service.pipeline.grid)[0]
    known = codes.flatten().cpu().where(kept, -1)
    edit = EditRecord(command="complete", keep_rows=keep_rows)
    return service.jobs_for(given, configs, known=known, edit=edit)


def inpaintings(
    service: Service,
    codes: Int[Tensor, "1 *grid"],
    mask: Bool[Tensor, "1 l"],
    given: Given,
    configs: Sequence[SamplingConfig],
    *,
    method: Method = "resample",
    candidates: int = 16,
    kept: UInt8[Tensor, "1 3 s s"] | None = None,
) -> list[Job]:
    """Return images whose masked tokens are drawn again, one for each config; of ``kept`` the other pixels stay."""
    pipeline = service.pipeline
    masked = tuple(mask[0].nonzero().flatten().tolist())
    candidates = 1 if method == "plain" else candidates
    known = codes.flatten().cpu().where(~mask[0], -1)  # for previews
    edit = EditRecord(
        command="inpaint", masked=masked, method=method, candidates=candidates, keep_pixels=kept is not None
    )
    labels = pipeline.labels([given])

    def run(config: SamplingConfig) -> Iterator[Tensor]:
        settings, negatives = pipeline.negatives(config, 1)
        return inpaint(
            pipeline.generator,
            labels,
            settings,
            codes=codes,
            mask=mask,
            negatives=negatives,
            method=method,
            candidates=candidates,
            engine=pipeline.prepare(),
        )

    jobs = service.jobs_for(given, configs, known=known, edit=edit)
    if kept is not None:
        jobs = [replace(job, finish=partial(_around, kept, mask)) for job in jobs]
    if method == "plain":
        return jobs  # they share decoding steps with all others
    return [replace(job, places=candidates, run=partial(run, job.config)) for job in jobs]


def _around(
    pixels: UInt8[Tensor, "1 3 s s"], mask: Bool[Tensor, "1 l"], image: UInt8[Tensor, "s s 3"]
) -> UInt8[Tensor, "s s 3"]:
    return put_back(pixels, image.permute(2, 0, 1)[None], mask)[0].permute(1, 2, 0)


async def interpolations(
    service: Service, a: str | Given, b: str | Given, steps: int, config: SamplingConfig, path: str = "sphere"
) -> list[Job]:
    """Return images on the way from one class or prompt to another.

    Raises:
        ApiError: A class is unknown, or a number is out of range.
    """
    pipeline = service.pipeline
    ends = [end if isinstance(end, Prompt) else service.label(end, field) for end, field in ((a, "a"), (b, "b"))]
    names = tuple(end.text if isinstance(end, Prompt) else pipeline.class_name(end) for end in ends)
    way = await checked(lambda: pipeline.between(ends[0], ends[1], steps, path), "steps")
    openings = pipeline.generator.openings(way.to(pipeline.device)).detach()
    jobs = []
    for step in range(steps):
        share = step / (steps - 1)
        edit = EditRecord(command="interpolate", classes=names, share=share, path=path)
        [job] = service.jobs_for(ends[share > 0.5], [config])
        jobs.append(replace(job, prompt=None, opening=openings[step], edit=edit))
    return jobs
