"""Requests for images that are generated together, and what their senders are told.

Shape letters: L tokens of an image, s side of an image.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtyping import Int, UInt8
from torch import Tensor

from aimamba.generation.batch import Job, Running


class Preview(NamedTuple):
    """An image that is not finished.

    Attributes:
        number: Which image of the request it is.
        tokens: Number of tokens that it has.
        image: The image (s, s, 3); what is not generated yet is decoded from ``blank``.
    """

    number: int
    tokens: int
    image: UInt8[Tensor, "s s 3"]


class Made(NamedTuple):
    """A finished image.

    Attributes:
        number: Which image of the request it is.
        codes: Its codes, (L,).
        image: The image, (s, s, 3).
    """

    number: int
    codes: Int[Tensor, " l"]
    image: UInt8[Tensor, "s s 3"]


class Failed(NamedTuple):
    """The request has ended without its remaining images."""

    error: Exception


Event = Preview | Made | Failed
Sink = Callable[[Event], object]


class QueueFullError(Exception):
    """There is no room for a request.

    Attributes:
        seconds: When there may be room, from now.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class ClosedError(Exception):
    """The scheduler takes no requests any more."""


class Request:
    """Images that belong together, from ``Scheduler.submit``.

    Attributes:
        jobs: The images.
        preview_every: Tokens between two previews of an image; 0 for none.
        submitted: When it came, by the scheduler's clock.
        begun: When its first image joined the batch, or None.
    """

    def __init__(self, jobs: Sequence[Job], sink: Sink, preview_every: int, submitted: float) -> None:
        self.jobs, self.sink, self.preview_every, self.submitted = tuple(jobs), sink, preview_every, submitted
        self.begun: float | None = None
        self.waiting = deque(range(len(self.jobs)))
        self.running: dict[int, Running] = {}
        self.ended = False

    def shows(self, tokens: int) -> bool:
        """Return whether there is to be a preview of an image that has so many tokens."""
        return self.preview_every > 0 and tokens > 0 and tokens % self.preview_every == 0

    @property
    def places(self) -> int:
        """Number of places that its images take in the batch."""
        return sum(image.job.places for image in self.running.values())
