"""Continuous batching: requests share decoding steps, and join and leave between two tokens.

``Scheduler.step`` does everything that lies between two tokens and then computes one; ``Scheduler.run`` repeats it in a
thread of its own. Requests come from any thread, and events go to a function of the request, called in that thread.

Shape letters: B images, L tokens of an image, s side of an image.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from aimamba.config import check
from aimamba.errors import AimambaError
from aimamba.generation.batch import Batch, Job, Running
from aimamba.generation.engines import Engine
from aimamba.generation.requests import ClosedError, Event, Failed, Made, Preview, QueueFullError, Request, Sink
from aimamba.models import AiM

_log = logging.getLogger(__name__)

_RECENT = 32  # images whose times give the rate
_AT_ONCE = 4  # images that a CPU decodes together; clients get them, and ask anew, while the others are decoded
_MOST_TOGETHER = 4096  # images of a batch
_MOST_CREDIT = 1.0  # seconds that previews may take at once; besides, they take as long as steps at most

Decode = Callable[[Int[Tensor, "b l"]], UInt8[Tensor, "b s s 3"]]
"""Converts codes to 8-bit images on the host."""


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Limits of a scheduler.

    Attributes:
        images: Images that are generated together, at most. A guided image computes two rows.
        reserved: How many of these places a request cannot take beyond its first image, so that another request need
            not wait for one of its images to end.
        waiting: Images that may wait for a place.
    """

    images: int = 32
    reserved: int = 8
    waiting: int = 256

    def __post_init__(self) -> None:
        check(
            1 <= self.images <= _MOST_TOGETHER,
            f"images generated together must be 1 to {_MOST_TOGETHER:,}, got {self.images}",
        )
        check(self.waiting >= 1, f"waiting images must be 1 or more, got {self.waiting}")
        check(
            0 <= self.reserved < self.images,
            f"reserved places must be 0 or more and below the images generated together ({self.images}), "
            f"got {self.reserved}",
        )


class Scheduler:
    """Generates the images of many requests together.

    The places of the batch are shared fairly: the next one goes to the request that has the fewest images in it, and
    among these to the oldest.

    Attributes:
        config: Limits.
        images, tokens, steps: Number of images finished, tokens chosen and steps computed so far.
        cancelled: Number of images that were given up because their request was cancelled.
    """

    def __init__(
        self,
        model: AiM,
        engine: Engine,
        decode: Decode,
        config: SchedulerConfig = SchedulerConfig(),
        *,
        blank: Int[Tensor, " l"] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare for requests.

        Args:
            model: The generator, in evaluation mode.
            engine: Computes its steps.
            decode: Converts codes to images.
            config: Limits.
            blank: Codes that stand for tokens which are not there yet, in previews; by default code 0.
            clock: Returns the time in seconds.
        """
        self.config = config
        self.images = self.tokens = self.steps = self.cancelled = 0
        self._model, self._decode, self._clock = model, decode, clock
        device = model.word_embedding.weight.device
        self._blank = torch.zeros((), dtype=torch.long, device=device) if blank is None else blank.to(device)
        self._at_once = _AT_ONCE if device.type == "cpu" else config.images
        self._batch = Batch(model, engine, config.images)
        self._requests: list[Request] = []  # all that have not ended, oldest first
        self._changed = threading.Condition()  # held for what requests from other threads touch
        self._closed = False
        self._finished: deque[float] = deque(maxlen=_RECENT)  # times at which images were finished
        self._credit = _MOST_CREDIT  # seconds left for previews

    @property
    def waiting(self) -> int:
        """Number of images that wait for a place."""
        with self._changed:
            return sum(len(request.waiting) for request in self._requests)

    @property
    def running(self) -> int:
        """Number of images in the batch."""
        return len(self._batch)

    @property
    def rows(self) -> int:
        """Number of rows in the batch."""
        return self._batch.rows

    def submit(self, jobs: Sequence[Job], sink: Sink, *, preview_every: int = 0) -> Request:
        """Ask for images. May be called from any thread.

        Args:
            jobs: The images.
            sink: Called with every event of the request, in the scheduler's thread; it must return soon.
            preview_every: Tokens between two previews of an image; 0 for none.

        Raises:
            DataError: A job does not fit the model.
            QueueFullError: Too many images wait.
            ClosedError: The scheduler has been closed.
        """
        for job in jobs:
            job.check(self._model)
        request = Request(jobs, sink, preview_every, self._clock())
        with self._changed:
            self.check_room(len(jobs))
            self._requests.append(request)
            self._changed.notify_all()
        return request

    def check_room(self, count: int) -> None:
        """Check that some images would be taken now. May be called from any thread.

        Raises:
            QueueFullError: Too many images wait.
            ClosedError: The scheduler has been closed.
        """
        with self._changed:
            if self._closed:
                raise ClosedError("no requests are taken any more")
            if self.waiting + count > self.config.waiting:
                raise QueueFullError(
                    f"{self.waiting} images wait already, and {self.config.waiting} may wait",
                    (self.waiting + count - self.config.waiting) / self._rate(),
                )

    def cancel(self, request: Request) -> None:
        """Give a request up: its images leave the batch before the next token. May be called from any thread."""
        with self._changed:
            request.ended = True
            self.cancelled += len(request.waiting)
            request.waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more requests; those that are there are finished. May be called from any thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def run(self) -> None:
        """Generate until the scheduler is closed and every request has ended."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._requests or self._closed)
                if not self._requests:
                    return
            self.step()

    def step(self) -> bool:
        """Let images leave and join, and compute one token of each. Return whether there was any image.

        A step that fails ends the requests whose images it computed, and no others.
        """
        try:
            self._leave()
            self._join()
            if not len(self._batch):
                return False
            begun = self._clock()
            finished = self._batch.step()
            self._credit = min(_MOST_CREDIT, self._credit + self._clock() - begun)
            self.steps += 1
            self.tokens += len(self._batch)
            self._hand_over(finished)
        except Exception as error:
            if not isinstance(error, AimambaError):
                _log.exception("a decoding step failed")
            self._fail(error)
        return True

    def _leave(self) -> None:
        """Remove the images of requests that were cancelled, and requests that have ended."""
        with self._changed:
            for request in [each for each in self._requests if each.ended]:
                for image in request.running.values():
                    self._batch.leave(image)
                self.cancelled += len(request.running)
                request.running.clear()
                self._requests.remove(request)

    def _join(self) -> None:
        """Fill the batch."""
        with self._changed:
            taken = sum(request.places for request in self._requests)
            while taken < self.config.images:
                waiting = [request for request in self._requests if request.waiting and not request.ended]
                if not waiting:
                    return
                request = min(waiting, key=lambda each: each.places)  # the oldest of these
                if request.running and taken >= self.config.images - self.config.reserved:
                    return
                needed = request.jobs[request.waiting[0]].places
                if taken and taken + needed > self.config.images:
                    return
                taken += needed
                index = request.waiting.popleft()
                request.running[index] = self._batch.join(request.jobs[index])
                request.begun = self._clock() if request.begun is None else request.begun

    def _hand_over(self, finished: list[Running]) -> None:
        """Send finished images, and previews as far as there is time for them: others wait meanwhile."""
        ready: list[tuple[Request, int, Running]] = []
        for request in list(self._requests):
            for index, image in list(request.running.items()):
                if image.error is not None:
                    if not isinstance(image.error, AimambaError):
                        _log.error("generating an image failed", exc_info=image.error)
                    self._batch.leave(image)
                    del request.running[index]
                    self._end(request, Failed(image.error))
                elif image in finished or (self._credit > 0 and request.shows(image.tokens)):
                    ready.append((request, index, image))
        if not ready:
            return
        for first in range(0, len(ready), self._at_once):
            some = ready[first : first + self._at_once]
            begun = self._clock()
            codes = torch.stack([self._shown(image) for _, _, image in some])
            images = self._decode(codes)
            unfinished = sum(image not in finished for _, _, image in some)
            self._credit -= (self._clock() - begun) * unfinished / len(some)
            for (request, index, image), of_image, pixels in zip(some, codes.cpu(), images, strict=True):
                if image not in finished:
                    self._send(request, Preview(index, image.tokens, pixels))
                    continue
                self._batch.leave(image)
                del request.running[index]
                self.images += 1
                self._finished.append(self._clock())
                self._send(request, Made(index, of_image, pixels))
                if not request.waiting and not request.running:
                    request.ended = True

    def _shown(self, image: Running) -> Int[Tensor, " l"]:
        """Return the codes of an image; in place of tokens that are not there yet, what is known of them, or blank."""
        length, rest = self._model.config.num_tokens, self._blank
        if image.tokens == length:
            return image.codes
        if image.job.known is not None:
            known = image.job.known.to(rest.device)
            rest = known.where(known >= 0, rest)
        return torch.cat([image.codes[: image.tokens], rest.expand(length)[image.tokens :]])

    def _fail(self, error: Exception) -> None:
        """End every request that has images in the batch, and begin with an empty one."""
        for request in list(self._requests):
            if request.running:
                request.running.clear()
                self._end(request, Failed(error))
        self._batch.clear()

    def _end(self, request: Request, event: Failed) -> None:
        with self._changed:
            already, request.ended = request.ended, True
            request.waiting.clear()
        if not already:
            self._send(request, event)

    def _send(self, request: Request, event: Event) -> None:
        """Call the sink of a request; one that fails ends only its own request."""
        if request.ended and not isinstance(event, Failed):
            return
        try:
            request.sink(event)
        except Exception:
            _log.exception("a request's sink failed")
            self.cancel(request)

    def _rate(self) -> float:
        """Return the images finished each second, by the latest ones."""
        if len(self._finished) < 2:
            return 1.0
        return (len(self._finished) - 1) / max(self._finished[-1] - self._finished[0], 1e-3)
