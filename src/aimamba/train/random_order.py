"""Random orders of codes that become raster order (RAR, arXiv 2411.00776). They change training alone.

A model that reads in raster order alone never learns what a code says about those above it. At first some images are
read and predicted in a random order instead, fewer and fewer of them, and each input is told which place comes next.

Shape letters: B batch, L codes of an image, D width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aimamba import distributed
from aimamba.config import check
from aimamba.models import AiMConfig
from aimamba.models.condition import empty_embedding


class RandomOrder(NamedTuple):
    """How many of the images are in a random order.

    Attributes:
        start: Their share in the first steps.
        since: Step, counted from 0, from which on the share falls linearly.
        until: Step from which on all images are in raster order.
    """

    start: float
    since: int = 0
    until: int = 0

    def check(self) -> None:
        """Raise a ``ConfigError`` if a number is out of range."""
        check(0 <= self.start <= 1, f"task.random_order must lie in [0, 1], got {self.start}")
        check(self.since >= 0, f"task.random_order_since must not be negative, got {self.since}")
        check(
            self.until > self.since or (self.start == 0 and self.until >= 0),
            "task.random_order needs task.random_order_until, the step from which on all images are in raster order, "
            f"above task.random_order_since = {self.since}, got {self.until}",
        )

    def share(self, step: int | Tensor) -> float | Tensor:
        """Return the share in a step, counted from 0: a scalar tensor if the step is one."""
        left = (self.until - step) / (self.until - self.since)
        return self.start * (left.clamp(0.0, 1.0) if isinstance(left, Tensor) else min(1.0, max(0.0, left)))

    def draw(self, images: int, length: int, rng: torch.Generator, step: int | Tensor) -> Int[Tensor, "b l"]:
        """Return the places of the codes of each image, in the order in which they are predicted."""
        device = rng.device
        raster = torch.arange(length, device=device).expand(images, length)
        shuffled = distributed.uniform((images, length), rng, device).argsort(dim=1)
        chosen = distributed.uniform((images, 1), rng, device) < self.share(step)
        return torch.where(chosen, shuffled, raster)


class NextPlaces(nn.Module):
    """Vectors that tell an input which place comes next. No saved model has them.

    What is added is the vector of that place less the vector of the next one in raster order. So nothing is added where
    an image is in raster order, and the model samples without them.
    """

    def __init__(self, length: int, width: int) -> None:
        """Make vectors for the places of ``length`` codes, without initial weights."""
        super().__init__()
        self.table = empty_embedding(length + 1, width)  # one more follows the last place

    @classmethod
    def of(cls, model: AiMConfig) -> "NextPlaces":
        """Make vectors for a generator.

        Raises:
            ConfigError: It is not told the places of its codes.
        """
        check(
            model.positions == "learned",
            "task.random_order needs learned positions: set model.positions to 'learned', or random_order to 0",
        )
        return cls(model.num_tokens, model.width)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill the vectors from N(0, 0.02^2)."""
        self.table.weight.normal_(std=0.02, generator=generator)

    def forward(self, order: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Return what is added to the input of each prediction: the condition vector, then the codes but the last.

        Args:
            order: Place of each code, in the order in which they are predicted.
        """
        usual = torch.cat([torch.zeros_like(order[:, :1]), order[:, :-1] + 1], dim=1)
        return self.table(order) - self.table(usual)
