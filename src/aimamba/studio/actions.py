"""What the buttons of the page do. No handler decodes anything itself: all ask the server's scheduler."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import torch

from aimamba.generation import SamplingConfig
from aimamba.generation.batch import Job
from aimamba.serve.edit_jobs import check_rows, checked, completions, inpaintings, interpolations
from aimamba.serve.errors import ApiError
from aimamba.serve.service import Service
from aimamba.studio.choice import Choice
from aimamba.studio.controls import other_seed, read_controls
from aimamba.studio.frames import Frame, Kind, failure, frames, read_codes

IMAGE, SHEET, STRIP = "One image", "A sheet", "Between two"
MODES = (IMAGE, SHEET, STRIP)


class Actions:
    """The handlers of a page."""

    def __init__(self, service: Service, choice: Choice) -> None:
        self._service, self._choice = service, choice

    async def draw(
        self, chosen: Any, mode: Any, count: Any, to: Any, steps: Any, *settings: Any
    ) -> AsyncGenerator[Frame]:
        """Generate what the panel says: an image, a sheet of images with following seeds, or a strip.

        Args:
            chosen: The value of ``Choice``.
            mode: One of ``MODES``.
            count: Images of a sheet.
            to: Class at the other end of a strip.
            steps: Images of a strip.
            settings: Values of the controls.
        """
        try:
            kind, jobs = await self._drawing(chosen, mode, count, to, steps, read_controls(settings))
        except Exception as error:
            yield failure(error)
            return
        async for frame in frames(self._service, jobs, kind):
            yield frame

    async def _drawing(
        self, chosen: Any, mode: Any, count: Any, to: Any, steps: Any, config: SamplingConfig
    ) -> tuple[Kind, list[Job]]:
        given = self._choice.given(chosen)
        if mode == STRIP:
            steps = self._count(steps, 2)
            return "strip", await interpolations(self._service, given, self._choice.given(to), steps, config)
        if mode == SHEET:
            return "sheet", self._service.jobs_for(given, self._seeded(config, self._count(count)))
        return "image", self._service.jobs_for(given, [config])

    async def again(self, *values: Any) -> AsyncGenerator[tuple[Frame, str]]:
        """Do as ``draw`` with another seed, which is shown too."""
        seed = other_seed()
        *first, _, more = values
        async for frame in self.draw(*first, seed, more):
            yield frame, seed

    async def redraw(self, chosen: Any, asked: Any, *settings: Any) -> AsyncGenerator[Frame]:
        """Keep a part of an image and generate the rest.

        Args:
            chosen: The value of ``Choice``: the class that is drawn.
            asked: What the stage sent: ``codes`` of the image, ``n`` images wanted, and either ``rows`` of tokens to
                keep or ``mask``, the numbers of the tokens to draw again.
            settings: Values of the controls. The seed is another one: with that of the image, the rest of it would
                come back as it was.
        """
        try:
            config = replace(read_controls(settings), seed=int(other_seed()))
            jobs = await self._redrawing(chosen, asked if isinstance(asked, dict) else {}, config)
        except Exception as error:
            yield failure(error)
            return
        async for frame in frames(self._service, jobs, "image" if len(jobs) == 1 else "sheet"):
            yield frame

    async def _redrawing(self, chosen: Any, asked: dict[str, Any], config: SamplingConfig) -> list[Job]:
        service = self._service
        given, codes = self._choice.given(chosen), read_codes(asked.get("codes"), service)
        configs = self._seeded(config, self._count(asked.get("n", 1)))
        if "rows" in asked:
            rows = _whole(asked["rows"], "the rows to keep")
            check_rows(service, rows)
            return completions(service, codes, rows, given, configs)
        cells = asked.get("mask")
        cells = cells if isinstance(cells, list) else []
        mask = torch.zeros(1, service.length, dtype=torch.bool)
        for cell in cells[: service.length]:
            number = _whole(cell, "a painted square")
            if number >= service.length:
                raise ApiError(422, f"there is no square {number}: the image has {service.length}", field="mask")
            mask[0, number] = True
        if not mask.any():
            raise ApiError(422, "paint over what shall be drawn again first", field="mask")
        most = service.config.scheduler.images
        return inpaintings(service, codes, mask, given, configs, candidates=min(16, most))

    async def sureness(self, asked: Any) -> dict[str, Any]:
        """Return the probability that the model gave each token of an image when its turn came.

        Args:
            asked: ``codes`` of the image and its ``label``, a class or a prompt.

        Returns:
            ``probabilities``, of all tokens in raster order, or ``error``.
        """
        service = self._service
        try:
            sent = asked if isinstance(asked, dict) else {}
            codes, given = read_codes(sent.get("codes"), service), self._choice.given(sent.get("label"))
            labels = service.pipeline.labels([given])
            async with service.uploading():
                bits = await checked(lambda: service.pipeline.bits(codes, labels), "image")
            return {"probabilities": [round(value, 6) for value in torch.exp2(-bits[0]).tolist()]}
        except Exception as error:
            return {"error": failure(error)["message"]}

    def _count(self, value: Any, lowest: int = 1) -> int:
        count = _whole(value, "the number of images")
        if count < lowest:
            raise ApiError(422, f"the number of images must be {lowest} or more, got {count}")
        self._service.check_count(count, "n")
        return count

    def _seeded(self, config: SamplingConfig, count: int) -> Sequence[SamplingConfig]:
        return [replace(config, seed=seed) for seed in self._service.seeds(config.seed, count)]


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise ApiError(422, f"{what} must be a whole number, got {str(value)[:40]!r}")
    return int(value)
