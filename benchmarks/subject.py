"""The common interface of our generator and the peers'."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from benchmarks.floors import Work

CFG_SCALE = 2.0  # as published for AiM-B; every scale except 1 costs the same


class Subject(ABC):
    """A generator that can be trained and can generate images with guidance.

    Attributes:
        model: The module.
        work: Its work per token, for the floors.
    """

    model: nn.Module
    work: Work

    @abstractmethod
    def generate(self, images: int, *, start: int = 0) -> Iterator[object]:
        """Generate a batch of images with guidance, yielding after every token.

        Args:
            images: Number of images; each takes two rows.
            start: Number of tokens to treat as already generated. States and caches have the size they have after so
                many tokens, filled with noise where that costs the same.
        """

    @abstractmethod
    def loss(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of codes (B, L) given labels (B,), for a backward pass."""


def numbers(parameters: Iterable[Tensor]) -> int:
    """Return the number of elements of all tensors, counting each tensor once."""
    return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in parameters}.values())


def linear_weights(module: nn.Module) -> list[Tensor]:
    """Return the weights of all linear layers in a module."""
    return [part.weight for part in module.modules() if isinstance(part, nn.Linear)]
