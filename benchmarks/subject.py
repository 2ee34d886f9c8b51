"""The interface behind which ours and the peers' generators are measured."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from benchmarks.floors import Work

CFG_SCALE = 2.0  # as published for AiM-B; any scale but 1 costs the same


class Subject(ABC):
    """A generator that draws guided codes and can be trained.

    Attributes:
        model: Its module.
        work: What it must do for a token, for the floors.
    """

    model: nn.Module
    work: Work

    @abstractmethod
    def draw(self, images: int, *, start: int = 0) -> Iterator[object]:
        """Draw ``images`` at once with guidance, yielding after every code.

        Args:
            images: Images at once; two rows each.
            start: Codes that count as drawn: states and caches are filled as after so many, with noise where that
                costs the same.
        """

    @abstractmethod
    def loss(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of codes (B, L) given labels (B,), for a backward pass."""


def numbers(parameters: Iterable[Tensor]) -> int:
    """Numbers in some tensors, each tensor once."""
    return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in parameters}.values())


def linear_weights(module: nn.Module) -> list[Tensor]:
    """Weights of all linear layers inside a module."""
    return [part.weight for part in module.modules() if isinstance(part, nn.Linear)]
